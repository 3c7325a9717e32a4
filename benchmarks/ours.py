"""Implementations of this library."""

import functools
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxopt_keras as jk
from benchmarks import models
from benchmarks.problem import Problem, Rows
from benchmarks.runs import Implementation, Loop, Run, Wish
from benchmarks.written import WrittenAdam
from jaxopt_keras import rules
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import fields_of
from jaxopt_keras.pure.kernel import Kernel

NAME = "jaxopt_keras"


def engines() -> list[str]:
    """Return the engines that can be selected in the installed library."""
    if "engine" not in fields_of(Options):
        return []
    return [name for name in typing.get_args(typing.get_type_hints(Options)["engine"]) if name != "auto"]


def implementations(wish: Wish) -> list[Implementation]:
    this = functools.partial(Implementation, library=NAME, variant=wish.variant)
    if wish.workload.kind == "rows":
        return of_rows(wish)
    if wish.workload.kind == "training":
        return [
            this("step", start=functools.partial(train, variant=wish.variant)),
            this("value_and_grad, apply_gradients", start=functools.partial(train_stateful, variant=wish.variant)),
        ]
    found = [
        this("step", start=functools.partial(pure, variant=wish.variant)),
        this("apply_gradients", start=functools.partial(stateful, variant=wish.variant)),
        this("step, flat state", start=functools.partial(pure, variant=wish.variant, flat_state=True)),
        this("packed", start=functools.partial(packed, variant=wish.variant), copies=4),
        this("step, not donated", start=functools.partial(pure, variant=wish.variant, donate=False), copies=6),
    ]
    if wish.rule in (rules.Adam, rules.AdamW) and wish.variant == "optax":
        found.append(this("apply_gradients, class", start=functools.partial(of_class, make=WrittenAdam)))
    for engine in engines():
        found.append(this(f"step, engine {engine}", start=functools.partial(pure, variant=wish.variant, engine=engine)))
    if "keras" in wish.variants and wish.variant != "keras":
        found.append(Implementation("step, Keras's formula", NAME, functools.partial(pure, variant="keras"), "keras"))
    for storage in wish.storages:
        if storage != "float32":
            start = functools.partial(pure, variant=wish.variant, state_dtype=storage)
            found.append(this(f"step, {storage} state", start=start, storage=storage))
    return found


def of_rows(wish: Wish) -> list[Implementation]:
    """Return the implementations for sparse gradients. Lazy ones use Keras's formula, as torch's SparseAdam."""
    lazy = functools.partial(Implementation, library=NAME, variant="keras", sparse="lazy", copies=4)
    found = [
        lazy("step, lazy", start=functools.partial(pure, variant="keras", sparse="lazy")),
        lazy("apply_gradients, lazy", start=functools.partial(stateful, variant="keras", sparse="lazy")),
    ]
    if wish.rule.grain != "element":
        found = [each.refusing(f"{wish.rule.__name__} needs whole arrays") for each in found]
    start = functools.partial(pure, variant=wish.variant, sparse="dense")
    return [*found, Implementation("step, dense", NAME, start, wish.variant, copies=4)]


def kernel_for(problem: Problem, variant: str, **options: Any) -> Kernel:
    arguments: dict[str, Any] = {"learning_rate": problem.rate, "variant": variant} | problem.hyper
    return Kernel(problem.rule(**arguments), Options(**problem.options, **options))


def as_slices(given: list[Any]) -> list[Any]:
    """Convert `Rows` to this library's sparse gradients."""

    def one(g: Any) -> Any:
        return jk.IndexedSlices(g.values, g.indices) if isinstance(g, Rows) else g

    return [{name: one(g) for name, g in grads.items()} for grads in given]


def pure(problem: Problem, variant: str, donate: bool = True, **options: Any) -> Run:
    """Run `Kernel.step`."""
    kernel, params = kernel_for(problem, variant, **options), problem.start()
    function = kernel.step if donate else functools.partial(kernel.step, donate=False)
    return Loop(function, params, kernel.init(params), as_slices(problem.on_device))


class Packed(Loop):
    def params(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(p) for name, p in self.carried[0].unpack().items()}


def packed(problem: Problem, variant: str) -> Run:
    """Run `Kernel.step` on packed parameters and gradients, as `jax.grad` through `unpack` returns them."""
    kernel, params = kernel_for(problem, variant), jk.pack(problem.start())
    return Packed(kernel.step, params, kernel.init(params), [params.like(grads) for grads in problem.on_device])


class Stateful:
    """A loop over `Optimizer.apply_gradients`, as a user writes it."""

    def __init__(self, problem: Problem, make: Callable[..., jk.Optimizer], **options: Any) -> None:
        self.optimizer = make(learning_rate=problem.rate, **problem.hyper, **problem.options, **options)
        self.variables = [jk.Variable(p, name=name) for name, p in problem.start().items()]
        self.given, self.count = problem.on_device, 0

    def next(self) -> Any:
        self.count += 1
        return self.given[(self.count - 1) % len(self.given)]

    def step(self) -> None:
        self.optimizer.apply_gradients(zip(self.next(), self.variables, strict=True))

    def block(self) -> None:
        jax.block_until_ready(([v._value for v in self.variables], self.optimizer._kept.count))  # does not unpack slots

    def held(self) -> int:
        return jk.nbytes(([v._value for v in self.variables], self.optimizer._kept))

    def params(self) -> dict[str, NDArray[Any]]:
        return {v.path: np.asarray(v.value) for v in self.variables}


def stateful(problem: Problem, variant: str, **options: Any) -> Run:
    return of_class(problem, jk.optimizers.CLASSES[problem.rule.__name__], variant=variant, **options)


def of_class(problem: Problem, make: Callable[..., jk.Optimizer], **options: Any) -> Run:
    run = Stateful(problem, make, **options)
    run.given = [list(grads.values()) for grads in as_slices(run.given)]
    return run


def train(problem: Problem, variant: str) -> Run:
    """Run forward, backward and `Kernel.step` in one donated function."""
    kernel, params = kernel_for(problem, variant), problem.start()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any) -> Any:
        return kernel.step(params, state, jax.grad(models.loss)(params, batch))

    return Loop(step, params, kernel.init(params), problem.on_device)


class StatefulTraining(Stateful):
    def loss(self, batch: Any) -> jax.Array:
        return models.loss({v.path: v.value for v in self.variables}, batch)

    def step(self) -> None:
        _, grads = jk.value_and_grad(self.loss, self.variables, self.next())
        self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))


def train_stateful(problem: Problem, variant: str) -> Run:
    """Run `value_and_grad` and `apply_gradients`: two calls."""
    return StatefulTraining(problem, jk.optimizers.CLASSES[problem.rule.__name__], variant=variant)


def state_bytes(problem: Problem, variant: str, **options: Any) -> int:
    """Return the bytes of the slots."""
    shapes = {name: jax.ShapeDtypeStruct(p.shape, jnp.dtype(p.dtype)) for name, p in problem.params.items()}
    return jk.nbytes(kernel_for(problem, variant, **options).init(shapes).slots)
