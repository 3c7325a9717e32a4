"""The steps that `benchmarks.kernels` compiles for a TPU, and what is counted of each."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

import jaxopt_keras as jk
from benchmarks import tpu
from jaxopt_keras.engine import second
from jaxopt_keras.engine.compiled import init_at, shardings_of
from jaxopt_keras.engine.given import FUNCTION, LOSS
from jaxopt_keras.language.places import Places

MATRIX = {"w": (8192, 8192)}  # 256 MiB: more than a TPU keeps on its chip
TABLE = {"w": (1_000_000, 64)}  # narrow: a TPU lays it column by column
MODEL = {f"w{i:02d}": (8192, 4096) for i in range(28)}  # in float32 with its slots just less than a v5e has

Shapes = dict[str, tuple[int, ...]]


class Step(NamedTuple):
    """A step to compile: `make` returns a kernel, or a transformation of optax."""

    make: Callable[[], Any]
    dtype: str = "float32"
    shapes: Shapes = MATRIX
    rows: int = 0  # of a sparse gradient; 0: dense


def adamw(**options: Any) -> Callable[[], Any]:
    return lambda: jk.adamw(1e-3, **options)


def of_optax(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import optax

        return getattr(optax, name)(*arguments, **options)

    return make


RULES = {
    "sgd": (1e-2,), "adam": (), "nadam": (), "adamax": (), "rmsprop": (), "adagrad": (), "adadelta": (), "ftrl": (),
    "lion": (1e-4,), "lamb": (), "adafactor": (), "muon": (), "schedule_free_adamw": (),
    "sm3": (), "adam_mini": (), "sophia_g": (),
}  # fmt: skip
STEPS: dict[str, Step] = {
    "adamw": Step(adamw()),
    "optax adamw": Step(of_optax("adamw", 1e-3, weight_decay=0.004)),
    "bfloat16 slots": Step(adamw(state_dtype="bfloat16")),
    "float8 slots": Step(adamw(state_dtype="float8")),
    "int8 slots": Step(adamw(state_dtype="int8")),
    "int8 slots, by Pallas": Step(adamw(state_dtype="int8", engine="pallas")),
    "float8 slots, by Pallas": Step(adamw(state_dtype="float8", engine="pallas")),
    "int4 slots": Step(adamw(state_dtype="int4")),
    "int8 slots, 1 M x 64": Step(adamw(state_dtype="int8"), shapes=TABLE),
    "int8 slots, 50257 x 768": Step(adamw(state_dtype="int8"), shapes={"w": (50257, 768)}),
    "int8 slots, 28 of 8192 x 4096": Step(adamw(state_dtype="int8"), shapes=MODEL),
    "adamw, 28 of 8192 x 4096": Step(adamw(), shapes=MODEL),
    "bf16 parameters": Step(adamw(), "bfloat16"),
    "bf16 parameters, stochastic": Step(adamw(rounding="stochastic"), "bfloat16"),
    "bf16 parameters, float32 masters": Step(adamw(master_weights="float32"), "bfloat16"),
    "bf16 parameters, bf16+16": Step(adamw(master_weights="bf16+16"), "bfloat16"),
    "bf16 parameters, bf16+8": Step(adamw(master_weights="bf16+8"), "bfloat16"),
    "bf16 parameters, bf16+16, bfloat16 slots": Step(
        adamw(master_weights="bf16+16", state_dtype="bfloat16"), "bfloat16"
    ),
    "bf16 parameters, bf16+8, bfloat16 slots": Step(adamw(master_weights="bf16+8", state_dtype="bfloat16"), "bfloat16"),
    "bf16 parameters, bf16+8, int8 slots": Step(adamw(master_weights="bf16+8", state_dtype="int8"), "bfloat16"),
    "bf16 parameters, bf16+8, int8 slots, by Pallas": Step(
        adamw(master_weights="bf16+8", state_dtype="int8", engine="pallas"), "bfloat16"
    ),
    "bf16 parameters, guard": Step(adamw(skip_nonfinite=True), "bfloat16"),
    "bf16 parameters, bf16+8, guard": Step(adamw(master_weights="bf16+8", skip_nonfinite=True), "bfloat16"),
    "global norm": Step(adamw(global_clipnorm=1.0)),
    "average": Step(adamw(use_ema=True)),
    "average, overwriting": Step(adamw(use_ema=True, ema_overwrite_frequency=10)),
    "guard": Step(adamw(skip_nonfinite=True)),
    "guard, 1 M x 64": Step(adamw(skip_nonfinite=True), shapes=TABLE),
    "optax guard, 1 M x 64": Step(lambda: of_optax("apply_if_finite", of_optax("adamw", 1e-3)(), 5)(), shapes=TABLE),
    "accumulation": Step(adamw(gradient_accumulation_steps=4)),
    "accumulation, 1 M x 64": Step(adamw(gradient_accumulation_steps=4), shapes=TABLE),
    "loss scale, float16 parameters": Step(lambda: jk.loss_scaled(jk.adamw(1e-3)), "float16"),
    "loss scale, bf16 parameters, bf16+8": Step(
        lambda: jk.loss_scaled(jk.adamw(1e-3, master_weights="bf16+8")), "bfloat16"
    ),
    "bf16 parameters, bf16+8, guarded groups": Step(
        lambda: jk.partition(
            {"w": jk.adamw(1e-3, master_weights="bf16+8", skip_nonfinite=True)}, jk.sgd(skip_nonfinite=True)
        ),
        "bfloat16",
    ),
    "loss scale, bf16 parameters, accumulation": Step(
        lambda: jk.loss_scaled(jk.adamw(1e-3, gradient_accumulation_steps=4)), "bfloat16"
    ),
    "bf16 parameters, accumulation, guard": Step(adamw(gradient_accumulation_steps=4, skip_nonfinite=True), "bfloat16"),
    "1024 rows of 1 M x 64": Step(lambda: jk.adam(1e-3, sparse="lazy"), shapes=TABLE, rows=1024),
    "1024 rows of 1 M x 64, guard": Step(
        lambda: jk.adam(1e-3, sparse="lazy", skip_nonfinite=True), shapes=TABLE, rows=1024
    ),
    "1024 rows of 1 M x 128": Step(lambda: jk.adam(1e-3, sparse="lazy"), shapes={"w": (1_000_000, 128)}, rows=1024),
} | {name: Step(lambda n=name, x=arguments: getattr(jk, n)(*x)) for name, arguments in RULES.items()}


class Counts(NamedTuple):
    """The counts of a compiled step."""

    cost: tpu.Cost
    parameters: int
    kept: int  # arrays of parameters and state, without numbers that are only written
    aliased: int  # of these, written in place
    temporary: int  # bytes
    arguments: int  # bytes
    seconds: float  # to compile

    @property
    def bytes(self) -> float:
        """The bytes of HBM that move, for each parameter."""
        return self.cost.bytes / self.parameters

    @property
    def extra(self) -> float:
        """The bytes of temporary memory, for each parameter."""
        return self.temporary / self.parameters

    def row(self) -> str:
        return (
            f"{self.bytes:.1f} | {self.extra:.1f} | {self.cost.kernels} | {self.cost.copies} | "
            f"{self.aliased} of {self.kept} | {self.seconds:.0f}"
        )


def counted(step: Step, chip: str) -> Counts:
    """Compile a donated step for one `chip`, and count it."""
    where = SingleDeviceSharding(tpu.devices(chip)[0])
    params = {name: jax.ShapeDtypeStruct(s, jnp.dtype(step.dtype), sharding=where) for name, s in step.shapes.items()}
    return count(step.make(), params, gradients(params, step.rows), where)


def gradients(params: dict[str, Any], rows: int) -> dict[str, Any]:
    if not rows:
        return params

    def some(p: Any) -> Any:
        struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=p.sharding)
        return jk.IndexedSlices(struct((rows, *p.shape[1:]), p.dtype), struct((rows,), jnp.int32), p.shape)

    return {name: some(p) for name, p in params.items()}


def count(made: Any, params: dict[str, Any], grads: Any, where: Any) -> Counts:
    """Count a donated step of a kernel, or of a transformation of optax, on `params`, shapes with shardings."""
    put = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    if isinstance(made, jk.Kernel):
        given = {LOSS: 0.0, FUNCTION: second.of_values(_quadratic, {})}  # for rules that take the loss or its function
        hyper = put(made.program.offered(made.hyper(), given))
        alone = isinstance(where, SingleDeviceSharding)
        state = put(made.init(params)) if alone else _where_init_leaves_it(made, params, hyper)
        state = state._replace(hyperparams={}, slots=_on_host(state.slots) if made.options.offload else state.slots)
        of_args = shardings_of((params, state))  # on a mesh a step places its results as its arguments are
        placed = {"out_shardings": of_args[1].unflatten(of_args[0])} if of_args else {}
        jit = functools.partial(jax.jit, donate_argnums=(0, 1), **placed)
        jitted = jit(made.skeleton.step)  # not the kernel's own, which may know a trace
        arguments = params, state, grads, hyper
    else:
        import optax

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = made.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = put(jax.eval_shape(made.init, params))
        jitted, arguments = jax.jit(step, donate_argnums=(0, 1)), (params, state, grads)
    start = time.perf_counter()
    with Places.of(params).traced(), _mesh(where):
        compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None  # programs compiled by XLA have both
    read = jax.tree.leaves(compiled.input_shardings[0][:2], is_leaf=lambda x: x is None)
    arrays = {id(x) for x in jax.tree.leaves((params, getattr(state, "slots", state))) if x.size > 1}
    everything = zip(jax.tree.leaves((params, state)), read, strict=True)
    kept = [x for x, s in everything if s is not None or id(x) in arrays]
    return Counts(
        tpu.cost(text), sum(p.size for p in params.values()), len(kept),
        text.splitlines()[0].count("-alias)"), memory.temp_size_in_bytes, memory.argument_size_in_bytes, seconds,
    )  # fmt: skip


def _quadratic(params: Any) -> Any:
    return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params))


def _where_init_leaves_it(kernel: Any, params: Any, hyper: Any) -> Any:
    """Return the shapes of a state on a mesh, with the shardings that the compiler gives it."""
    where = jax.tree.leaves(hyper)[0].sharding
    with _mesh(where):
        init = jax.jit(functools.partial(init_at, kernel.skeleton, Places.of(params)))
        shapes, shardings = jax.eval_shape(init, params, hyper), init.lower(params, hyper).compile().output_shardings
    on_mesh = lambda s: (
        s if s.device_set == where.device_set else where
    )  # what depends on no parameter is on one device
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh(s)), shapes, shardings)


def _on_host(slots: Any) -> Any:
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding.with_memory_kind("pinned_host"))
    return jax.tree.map(put, slots)


def _mesh(where: Any) -> Any:
    """Return the scope of a mesh with explicit axes, or of one device, for which Pallas needs its kind."""
    if isinstance(where, SingleDeviceSharding):
        alone = Mesh(np.array([*where.device_set]), ("alone",), axis_types=(AxisType.Auto,))
        return jax.sharding.use_abstract_mesh(alone.abstract_mesh)
    explicit = AxisType.Explicit in where.mesh.axis_types
    return jax.sharding.use_abstract_mesh(where.mesh.abstract_mesh) if explicit else contextlib.nullcontext()


HEAD = """| step | bytes / parameter | temporary | kernels | copies | in place | compiled in s |
| --- | --- | --- | --- | --- | --- | --- |"""
