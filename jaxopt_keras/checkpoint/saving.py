"""What users call: states and optimizers into dicts, files and folders, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint import files, folders
from jaxopt_keras.checkpoint import stateful_layout as faces
from jaxopt_keras.checkpoint.convert import formed
from jaxopt_keras.checkpoint.kernels import groups
from jaxopt_keras.checkpoint.names import FORMAT, VERSION, leaves, spread
from jaxopt_keras.checkpoint.restore import Place, by_path, restored
from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

SUFFIX = ".safetensors"


def to_dict(state: Any, *, portable: bool = False, on_host: bool = True) -> dict[str, Any]:
    """A state as a flat `{name: array}`, with names such as `slots/dense/kernel/momentum`.

    The names are the same whatever the optimizer is made of: schedule, clip, guard, averages, accumulation, groups,
    packed parameters. They are in `docs/checkpoints.md`.

    Args:
        state: of a kernel, or an `Optimizer` that is built.
        portable: slots that are kept in codes are saved as the numbers that they stand for, under the slot's own name.
            Else their codes and scales are saved, which restores them bit by bit.
        on_host: NumPy copies. False: the state's own arrays where they lie, for Orbax; the next step may consume them.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> params = {"dense": {"kernel": jnp.ones((2, 2))}}
    >>> [*to_dict(jk.adagrad(0.1).init(params))]
    ['format', 'slots/dense/kernel/accumulator', 'step']

    Raises:
        TypeError: if it is neither. ValueError: if two parameters have the same path, or an array lies on several
        processes' devices (`on_host=False` keeps it there).
    """
    if not isinstance(state, (State, Optimizer)):
        raise TypeError(
            "`state` must be what `kernel.init` or `kernel.step` returned, or a `jaxopt_keras.Optimizer`. Received: "
            f"{type(state).__module__}.{type(state).__qualname__}. Of an optimizer of `interop.keras` pass its "
            "`wrapped`, of one of `interop.flax` its `state`, of a `TrainState` its `opt_state`."
        )
    found = leaves(faces.state_of(state) if isinstance(state, Optimizer) else state)
    flat = {FORMAT: np.asarray(VERSION, np.int32)} | spread(found, portable)
    return {name: files.on_host(name, x) for name, x in flat.items()} if on_host else flat


def from_dict(kernel: Any, params: Any, d: Mapping[str, Any], *, hyper: bool = False) -> State:
    """The state that `d` holds, for any kernel whose rule has those slots.

    Args:
        kernel: of any kind. Its hyperparameters are its own, whatever those of the saved state were.
        params: the parameters, as for `kernel.init`: what `d` lacks is initialised from them.
        d: of `to_dict`, whichever kernel it came from.
        hyper: True takes the saved hyperparameters too, those that the kernel keeps in its state
            (`inject_hyperparams`). Those that `d` lacks are told in a warning.

    What `d` has and the kernel does not use, and slots that `d` lacks, are told in a warning. Slots are converted to
    the form that the kernel keeps them in, and lie where it keeps them.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> params = jnp.ones(3)
    >>> plain, other = jk.adamw(0.1), jk.adam(0.1, skip_nonfinite=True, state_dtype="bfloat16")
    >>> params, state = plain.step(params, plain.init(params), jnp.ones(3))
    >>> state = from_dict(other, params, to_dict(state))
    >>> int(state.count), state.slots["momentum"].dtype, int(state.scalars["skipped"])
    (1, dtype(bfloat16), 0)

    Raises:
        TypeError: if `kernel` is none, or an array is of a wrong kind. ValueError: for a shape that does not fit, which
        it names; if nothing fits; for a layout of a later version; for `hyper` and a kernel that injects none.
    """
    return restored(_place(kernel, params, hyper), d, hyper)


def save(path: Any, state: Any, params: Any = None, *, portable: bool = False) -> None:
    """Saves a state or an `Optimizer` to a file, or to an Orbax folder if `path` does not end in ".safetensors".

    A file is written under another name, synchronised and renamed: killed at any moment, this leaves the old file or
    the new one. Orbax does so with folders; there, every process must call this.

    Args:
        path: of the file or folder.
        state: as in `to_dict`.
        params: a pytree of arrays to save with it, so that the two are always of the same step; `load_params` reads it.
        portable: as in `to_dict`.

    Raises:
        ImportError: if safetensors, or Orbax, is not installed. TypeError, ValueError: as `to_dict`.
    """
    flat = to_dict(state, portable=portable, on_host=False)
    given = {_param(p): x for p, x in by_path(params).items()}
    write = files.write if _is_file(path) else folders.write
    write(path, flat | given)


def load(path: Any, kernel: Any, params: Any = None, *, hyper: bool = False) -> Any:
    """What `save` saved: a state for `kernel` and `params`. With an `Optimizer` in the place of `kernel`: into it.

    Args:
        path: a file, an Orbax folder, or an item in a step's folder of an `orbax.checkpoint.CheckpointManager`, which
            may have been written by any number of processes or devices.
        kernel: a kernel, or an `Optimizer` that is built. An error leaves it as it was.
        params: for a kernel, which needs them: as in `from_dict`. None for an `Optimizer`.
        hyper: as in `from_dict`.

    Returns:
        The state, or None for an `Optimizer`.

    Raises:
        OSError: if there is no such file. TypeError: if `params` are missing, or given for an `Optimizer`. ValueError:
        if it is empty, cut off, damaged, foreign, or does not fit.
    """
    if isinstance(kernel, Optimizer) and params is not None:
        raise TypeError(
            "`params` must be left out for an `Optimizer`, which has its variables. Received: "
            f"params={type(params).__name__}. `load_params(path, params)` reads those that were saved"
        )
    place = faces.place_of(kernel) if isinstance(kernel, Optimizer) else _place(kernel, params, hyper)
    state = restored(place, _read(path, spread(leaves(place.fresh), portable=False)), hyper)
    if not isinstance(kernel, Optimizer):
        return state
    faces.put(kernel, state)
    return None


def load_params(path: Any, params: Any) -> Any:
    """The parameters that `save` was given as JAX arrays, in the structure and the dtypes of `params`, where those lie.

    Raises:
        OSError, ValueError: as `load`; also if one is missing.
    """
    like = {path: x if hasattr(x, "sharding") else jnp.asarray(x) for path, x in by_path(params).items()}
    flat = _read(path, {_param(p): x for p, x in like.items()})
    if lacking := [p for p in like if _param(p) not in flat and like[p].size]:
        raise ValueError(f"{path} must hold the parameters {[*like]}. Received: one without {lacking}")
    found = {p: formed(_param(p), flat[_param(p)], x) if _param(p) in flat else x for p, x in like.items()}
    if not isinstance(params, Packed):
        return jax.tree.unflatten(jax.tree.structure(params), list(found.values()))
    return params.like(jax.tree.unflatten(params.treedef, list(found.values())))


def _param(path: str) -> str:
    return f"params/{path}"


def _is_file(path: Any) -> bool:
    return Path(path).suffix == SUFFIX


def _read(path: Any, like: Mapping[str, Any]) -> Mapping[str, Any]:
    return files.read(path) if _is_file(path) or Path(path).is_file() else folders.read(path, like)


def _place(kernel: Any, params: Any, hyper: bool) -> Place:
    if not isinstance(kernel, Kernel):
        raise TypeError(f"`kernel` must be a kernel, such as `jaxopt_keras.adam()`. Received: kernel={kernel!r}")
    if params is None:
        raise TypeError("`params` must be given for a kernel, as for `kernel.init`. Received: params=None")
    fresh = kernel.init(params)
    if hyper and not fresh.hyperparams:
        raise ValueError(
            "`hyper=True` puts the saved hyperparameters into the state, and this kernel keeps none there. Received: a "
            "kernel without `inject_hyperparams`. Make it with `inject_hyperparams=True`; or leave `hyper` out, and "
            "give the kernel its numbers: `kernel.replace(learning_rate=...)`. Saved ones are in the dict, as "
            "`hyper/learning_rate`."
        )
    return Place(fresh, groups(kernel), by_path(params))
