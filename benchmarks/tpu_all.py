"""Every rule, option and wrapper, compiled for a TPU that is only described."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxopt_keras as jk
from benchmarks import tpu, tpu_steps
from benchmarks.tpu_done import Done, Found
from jaxopt_keras import optimizers

SHAPES = {"kernel": (256, 256), "bias": (256,)}
SPLIT = {"kernel": PartitionSpec("data"), "bias": PartitionSpec()}
OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16 slots": {"state_dtype": "bfloat16"}, "int8 slots": {"state_dtype": "int8"},
    "int4 slots": {"state_dtype": "int4"}, "float8 slots": {"state_dtype": "float8"},
    "float16 slots": {"state_dtype": "float16"}, "clipnorm": {"clipnorm": 1.0}, "clipvalue": {"clipvalue": 1.0},
    "global norm": {"global_clipnorm": 1.0}, "decay": {"weight_decay": 0.1, "exclude_from_weight_decay": ["bias"]},
    "average": {"use_ema": True}, "average, overwriting": {"use_ema": True, "ema_overwrite_frequency": 10},
    "loss scale factor": {"loss_scale_factor": 128.0}, "accumulation": {"gradient_accumulation_steps": 4},
    "accumulation, int8 slots": {"gradient_accumulation_steps": 4, "state_dtype": "int8"},
    "guard": {"skip_nonfinite": True}, "guard, int8 slots": {"skip_nonfinite": True, "state_dtype": "int8"},
    "spikes": {"skip_spikes": 10.0}, "constraint": {"constraints": {"kernel": lambda p: jnp.maximum(p, 0)}},
    "schedule": {"learning_rate": lambda step: 1e-3 / (1 + step)}, "injected": {"inject_hyperparams": True},
    "flat state": {"flat_state": True}, "offload": {"offload": "pinned_host"},
}  # fmt: skip
OF_BF16: dict[str, dict[str, Any]] = {
    "bf16 parameters": {}, "stochastic": {"rounding": "stochastic"}, "float32 masters": {"master_weights": "float32"},
    "bf16+16": {"master_weights": "bf16+16"}, "bf16+8": {"master_weights": "bf16+8"},
    "bf16+16, bfloat16 slots": {"master_weights": "bf16+16", "state_dtype": "bfloat16"},
    "bf16+8, bfloat16 slots": {"master_weights": "bf16+8", "state_dtype": "bfloat16"},
    "bf16+8, int8 slots": {"master_weights": "bf16+8", "state_dtype": "int8"},
    "bf16+8, guard": {"master_weights": "bf16+8", "skip_nonfinite": True},
}  # fmt: skip
OF_ALL = ("bf16 parameters", "bf16+8, bfloat16 slots")
UNDER_OPTIONS = ("adamw", "muon", "adafactor", "lamb")
Case = tuple[str, Callable[[Any], Any], str]  # its name, the kernel for a mesh or None, the dtype of parameters


def cases() -> Iterator[Case]:
    """Yield every rule with four storages, four rules with every option, and every wrapper."""
    functions = optimizers.FUNCTIONS | {n: f for n, f in optimizers.MORE_FUNCTIONS.items() if n not in _modifiers()}
    around = {name: lambda n=name, **x: getattr(jk, n)(jk.adamw(**x)) for name in _modifiers()}
    for name, make in (functions | around).items():
        yield name, lambda _, make=make: make(), "float32"
        yield f"{name}, int8 slots", lambda _, make=make: make(state_dtype="int8"), "float32"
        for storage in OF_ALL:
            yield f"{name}, {storage}", lambda _, make=make, x=OF_BF16[storage]: make(**x), "bfloat16"
    for name in UNDER_OPTIONS:
        make = getattr(jk, name)
        for dtype, options in (("float32", OPTIONS), ("bfloat16", OF_BF16)):
            for option, x in options.items():
                if option in ("int8 slots", *OF_ALL):  # these are above
                    continue
                yield f"{name}, {option}", lambda _, make=make, x=x: make(**x), dtype
    forms = {
        "soap, kl": lambda **x: jk.soap(kl=True, **x),
        "mars, exact": lambda **x: jk.mars(jk.adamw(**x), exact=True),
    }
    for name, make in forms.items():
        yield name, lambda _, make=make: make(), "float32"
        yield f"{name}, int8 slots", lambda _, make=make: make(state_dtype="int8"), "float32"
    wrapped = {
        "loss_scaled": jk.loss_scaled, "frozen bias": lambda inner: jk.partition({"bias": jk.frozen(), "": inner}),
        "partition": lambda inner: jk.partition({"bias": jk.sgd(0.1, momentum=0.9), "": inner}),
    }  # fmt: skip
    for name, wrap in wrapped.items():
        for dtype in ("float32", "float16"):
            yield f"{name}, adamw, {dtype}", lambda _, wrap=wrap: wrap(jk.adamw()), dtype
        yield f"{name}, adamw, int8 slots", lambda _, wrap=wrap: wrap(jk.adamw(state_dtype="int8")), "float32"
    for name, options in (("adamw", {}), ("adamw", {"state_dtype": "int8"}), ("muon", {}), ("adafactor", {})):
        put = lambda mesh, n=name, x=options: jk.sharding.zero1(getattr(jk, n)(**x), mesh)
        yield f"zero1, {name}{', int8 slots' if options else ''}", put, "float32"


def _modifiers() -> list[str]:
    return [rule.__module__.rsplit(".", 1)[-1] for rule in optimizers.MODIFIERS.values()]


def counts(chip: str, on_mesh: bool, names: Any = None, done: Path | None = None) -> Iterator[tuple[str, Found]]:
    """Yield each case, or those of these `names`, and its counts, or the sentence with which it is refused.

    Args:
        done: a file of counts, to which new ones are added.
    """
    chips = tpu.devices(chip)
    mesh = Mesh(np.array(chips), ("data",), axis_types=(AxisType.Auto,)) if on_mesh else None
    kept = Done(done, f"{chip}{', mesh' if on_mesh else ''}")
    for name, make, dtype in cases():
        is_on_mesh_only = name.startswith("zero1")
        if (names is None or name in names) and (on_mesh or not is_on_mesh_only):
            yield name, kept.get(name, functools.partial(_count, name, make, dtype, chips, mesh))


def _count(name: str, make: Callable[[Any], Any], dtype: str, chips: Any, mesh: Any) -> Found:
    spec = lambda n: PartitionSpec() if name.startswith("zero1") else SPLIT[n]
    where = {n: NamedSharding(mesh, spec(n)) if mesh else SingleDeviceSharding(chips[0]) for n in SHAPES}
    params = {n: jax.ShapeDtypeStruct(SHAPES[n], jnp.dtype(dtype), sharding=where[n]) for n in SHAPES}
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(chips[0])
    try:
        return tpu_steps.count(make(mesh), params, params, whole)
    except Exception as error:  # of the library, of JAX or of the compiler: the others are still counted
        return f"{type(error).__name__}: {error}".splitlines()[0]


HEAD = """| step | bytes / parameter | temporary | kernels | copies | collectives | in place |
| --- | --- | --- | --- | --- | --- | --- |"""


def row(found: Found) -> str:
    if isinstance(found, str):
        return found
    cost = found.cost
    moved = f"{found.bytes:.1f} | {found.extra:.1f} | {cost.kernels} | {cost.copies} | {cost.collectives}"
    return f"{moved} | {found.aliased} of {found.kept}"


def summary(found: dict[str, Found]) -> str:
    counted = {name: x for name, x in found.items() if not isinstance(x, str)}
    refused = [name for name, x in found.items() if isinstance(x, str)]
    apart = [name for name, x in counted.items() if x.aliased < x.kept]
    return f"{len(counted)} compiled; refused: {refused or 'none'}; not all in place: {apart or 'none'}"
