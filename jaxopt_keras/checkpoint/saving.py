"""The public functions: save states and optimizers to dicts, files and folders, and load them."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.npyio import NpzFile

from jaxopt_keras.checkpoint import archives, files, folders, stateful_layout
from jaxopt_keras.checkpoint.arguments import check_arguments
from jaxopt_keras.checkpoint.convert import check, convert
from jaxopt_keras.checkpoint.kernels import group_of, groups
from jaxopt_keras.checkpoint.names import FORMAT, VERSION, flatten, leaves
from jaxopt_keras.checkpoint.restore import Place, by_path, needed, restored
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.packing.trees import Packed, unpacked
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.optimizer import Optimizer

SUFFIX = ".safetensors"


@locked
def to_dict(state: Any, *, portable: bool = False, on_host: bool = True) -> dict[str, Any]:
    """The arrays of a state by name, such as `slots/dense/kernel/momentum`.

    The names do not depend on the options of the optimizer: schedule, clipping, guard, averages, accumulation, groups,
    packed parameters. `docs/checkpoints.md` lists them.

    Args:
        state: the state of a kernel, or a built `Optimizer`.
        portable: True saves quantized slots as dequantized numbers, under the slot's own name. False (default) saves
            their codes and scales, which restore every bit.
        on_host: True (default) copies to NumPy arrays. False gives the state's own arrays on their devices, as Orbax
            needs them; the next step may donate them.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> params = {"dense": {"kernel": jnp.ones((2, 2))}}
    >>> [*to_dict(jk.adagrad(0.1).init(params))]
    ['format', 'slots/dense/kernel/accumulator', 'step']

    Raises:
        TypeError: if `state` is neither. ValueError: if two parameters have the same path, or an array is on devices of
        several processes (`on_host=False` leaves it there).
    """
    if not isinstance(state, (State, Optimizer)):
        raise TypeError(
            "`state` must be what `kernel.init` or `kernel.step` returned, or a `jaxopt_keras.Optimizer`. Received: "
            f"{type(state).__module__}.{type(state).__qualname__}. For an optimizer of `interop.keras` pass its "
            "`wrapped`, for one of `interop.flax` its `state`, for a `TrainState` its `opt_state`."
        )
    found = leaves(stateful_layout.state_of(state) if isinstance(state, Optimizer) else state)
    flat = {FORMAT: np.asarray(VERSION, np.int32)} | flatten(found, portable)
    return {name: files.on_host(name, x) for name, x in flat.items()} if on_host else flat


def from_dict(kernel: Any, params: Any, d: Mapping[str, Any], *, hyper: bool = False) -> State:
    """The state in `d`, for any kernel whose rule has those slots.

    Args:
        kernel: any kernel. It keeps its own hyperparameters, unless `hyper` is True.
        params: the parameters, as for `kernel.init`. Entries that `d` lacks are initialised from them.
        d: a result of `to_dict`, for this kernel or another one.
        hyper: True also restores the hyperparameters that the kernel injects (`inject_hyperparams`). Default: False.

    Slots are converted to the format of the kernel, and sharded as it shards them. A warning names entries of `d` that
    are not used, slots that `d` lacks, and with `hyper` the hyperparameters that it lacks.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> params = jnp.ones(3)
    >>> plain, other = jk.adamw(0.1), jk.adam(0.1, skip_nonfinite=True, state_dtype="bfloat16")
    >>> params, state = plain.step(params, plain.init(params), jnp.ones(3))
    >>> state = from_dict(other, params, to_dict(state))
    >>> int(state.count), state.slots["momentum"].dtype, int(state.scalars["skipped"])
    (1, dtype(bfloat16), 0)

    Raises:
        TypeError: if `kernel` is no kernel, or an array has a wrong kind. ValueError: if a shape does not match (the
        message names the entry), if no entry matches, if the layout has a later version, or if `hyper` is True and the
        kernel injects no hyperparameters.
    """
    place = _place(from_dict, kernel, params, hyper)
    if isinstance(d, NpzFile):
        d = archives.read(d, functools.partial(needed, place, hyper=hyper))
    return _with_schedules(kernel, restored(place, d, hyper))


@locked
def save(path: Any, state: Any, params: Any = None, *, portable: bool = False) -> None:
    """Saves a state or an `Optimizer` to a file, or to an Orbax folder if `path` does not end in ".safetensors".

    Writing is atomic: a file is written under a temporary name, synchronised and renamed, so a process that is killed
    leaves the old file or the new one. Orbax writes folders atomically too. With a folder, every process must call
    `save`.

    Args:
        path: the file or folder.
        state: as in `to_dict`.
        params: a pytree of arrays, saved in the same file, so that parameters and state are always of the same step.
            `load_params` reads them. Default: None, no parameters.
        portable: as in `to_dict`.

    Raises:
        ImportError: if safetensors or Orbax is not installed. TypeError, ValueError: as in `to_dict`.
    """
    check_arguments(save, path=path)
    flat = to_dict(state, portable=portable, on_host=False)
    given = {_param(p): x for p, x in by_path(params).items()}
    (files if Path(path).suffix == SUFFIX else folders).write(path, flat | given)


@locked
def load(path: Any, kernel: Any, params: Any = None, *, hyper: bool = False) -> Any:
    """Loads a checkpoint: returns the state of a kernel, or restores an `Optimizer` in place.

    Args:
        path: a file, an Orbax folder, or an item in a step of an `orbax.checkpoint.CheckpointManager`. Any number of
            processes or devices may have written it.
        kernel: a kernel, or a built `Optimizer`. After an error, an `Optimizer` is unchanged.
        params: the parameters of a kernel, as in `from_dict`. Must be None for an `Optimizer`.
        hyper: as in `from_dict`.

    Returns:
        The state, or None for an `Optimizer`.

    Raises:
        OSError: if there is no such file. TypeError: if `params` are missing, or given for an `Optimizer`. ValueError:
        if the file is empty, truncated, damaged, no checkpoint, or does not match, as in `from_dict`.
    """
    check_arguments(load, path=path)
    if isinstance(kernel, Optimizer) and params is not None:
        raise TypeError(
            "`params` must be left out for an `Optimizer`, which has its variables. Received: "
            f"params={type(params).__name__}. To read saved parameters, use `load_params(path, params)`."
        )
    place = stateful_layout.place_of(kernel) if isinstance(kernel, Optimizer) else _place(load, kernel, params, hyper)
    like = flatten(leaves(place.fresh), portable=False)
    state = restored(place, _read(path, like, functools.partial(needed, place, hyper=hyper)), hyper)
    if not isinstance(kernel, Optimizer):
        return _with_schedules(kernel, state)
    stateful_layout.put(kernel, state)
    return None


def load_params(path: Any, params: Any) -> Any:
    """Loads the parameters that `save` was given, with the structure, dtypes and sharding of `params`.

    Raises:
        OSError, ValueError: as in `load`. ValueError: also if a parameter is missing.
    """
    check_arguments(load_params, path=path, params=params)
    arrays = {p: x if hasattr(x, "sharding") else jnp.asarray(x) for p, x in by_path(params).items()}
    given = {_param(p): x for p, x in arrays.items()}
    former = [_param(path_of(key)) for key, _ in jax.tree_util.tree_leaves_with_path(unpacked(params))]
    older = dict(zip(given, former, strict=True))  # the names in older files, see `names.leaves`

    def saved(name: str, names: Mapping[str, Any]) -> str:
        return older[name] if older[name] in names else name

    def choose(declared: Mapping[str, Any]) -> list[str]:
        if lacking := [p for p, x in arrays.items() if saved(_param(p), declared) not in declared and x.size]:
            raise ValueError(
                f"{path} must contain the parameters {[*arrays]}. Received: a checkpoint without {lacking}"
            )
        chosen = {name: saved(name, declared) for name in given if saved(name, declared) in declared}
        for name, source in chosen.items():
            check(name, declared[source], given[name])
        return [*chosen.values()]

    flat = _read(path, given, choose)
    sources = {name: saved(name, flat) for name in given}
    found = {n: convert(n, flat[sources[n]], x) if sources[n] in flat else x for n, x in given.items()}
    tree = jax.tree.unflatten(jax.tree.structure(unpacked(params)), list(found.values()))
    return params.like(tree) if isinstance(params, Packed) else tree


def _param(path: str) -> str:
    return f"params/{path}"


def _read(path: Any, like: Mapping[str, Any], choose: Callable[..., Iterable[str]]) -> Mapping[str, Any]:
    is_file = Path(path).suffix == SUFFIX or Path(path).is_file()
    return files.read(path, choose) if is_file else folders.read(path, like, choose)


def _with_schedules(kernel: Kernel, state: State) -> State:
    """The state with the numbers of its last step, where they are schedules."""
    return kernel.keep(state.hyperparams, state)


def _place(function: Any, kernel: Any, params: Any, hyper: bool) -> Place:
    if isinstance(kernel, Kernel) and params is None:
        raise TypeError("`params` must be given for a kernel, as for `kernel.init`. Received: params=None")
    check_arguments(function, kernel=kernel, params=params)
    fresh = kernel.init(params)
    if hyper and not fresh.hyperparams:
        raise ValueError(
            "`hyper=True` needs a kernel that keeps its hyperparameters in the state. Received: a kernel without "
            "`inject_hyperparams`. Make it with `inject_hyperparams=True`. Or leave `hyper` out and set the numbers of "
            "the kernel: `kernel.replace(learning_rate=...)`; the dict has the saved ones, as `hyper/learning_rate`."
        )
    kernels = groups(kernel)
    functions = {name: own.program.schedules(injected=False) for name, own in kernels.items()}
    return Place(fresh, kernels, by_path(params), functions, group_of=functools.partial(group_of, kernel))
