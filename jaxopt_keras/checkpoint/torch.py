"""Conversion to and from torch: the `state_dict`s of `torch.optim`'s optimizers."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint.arguments import check_arguments
from jaxopt_keras.checkpoint.conventions import Library
from jaxopt_keras.checkpoint.kernels import group_of, groups, of_group
from jaxopt_keras.checkpoint.names import STEP, flatten, leaves, rule_slots, scalar_name, slot_name
from jaxopt_keras.checkpoint.restore import by_path
from jaxopt_keras.checkpoint.saving import from_dict
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.optional import optional
from jaxopt_keras.pure.kernel import Kernel

ADAM = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "velocity_hat": "max_exp_avg_sq"}
TABLE = {
    **dict.fromkeys(("Adam", "AdamPart", "Nadam"), ADAM),
    "SGD": {"momentum": "momentum_buffer"},
    "RMSprop": {"velocity": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"},
    "Adagrad": {"accumulator": "sum"},
    "Adadelta": {"accumulated_grad": "square_avg", "accumulated_delta_var": "acc_delta"},
    "Adamax": {"momentum": "exp_avg", "norm": "exp_inf"},
}
SLOTS = {theirs for names in TABLE.values() for theirs in names.values()}
PRODUCT, U_PRODUCT = "mu_product", "u_product"
Transposed = Mapping[str, Sequence[int]] | Sequence[str]


def from_torch(
    kernel: Kernel, params: Any, state_dict: Mapping[str, Any], order: Sequence[str], transpose: Transposed = ()
) -> State:
    """Converts the `state_dict` of a `torch.optim` optimizer into a state of `kernel`, which continues the training.

    Args:
        kernel: any kernel. These compute the same as torch's: Adam, AdamW and Adamax with `variant="optax"` (AMSGrad
            with "keras"), SGD, Adadelta, and Nadam with torch's `momentum_decay=1`. RMSprop and Adagrad differ only
            in the place of epsilon.
        params: the parameters, already in our layout.
        state_dict: the optimizer's, with tensors or NumPy arrays.
        order: the paths of our parameters in the order of torch's: `["dense/kernel", "dense/bias", ...]`.
        transpose: the parameters whose axes torch orders differently. A sequence of regular expressions: matrices whose
            path matches (`re.search`) are transposed, such as the weights of `torch.nn.Linear`. Or a dict from regular
            expressions to axes, as `numpy.transpose` takes them: `{"conv/kernel": (2, 3, 1, 0)}` for a `Conv2d`.
            Default: (), no parameter.

    Torch counts the steps of each parameter, a kernel those of each group. If they differ, the greatest is taken, with
    a warning.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> saved = {"state": {0: {"momentum_buffer": np.ones((3, 2))}}, "param_groups": [{"params": [0]}]}
    >>> kernel = jk.sgd(0.5, momentum=0.9)
    >>> state = from_torch(kernel, {"w": jnp.ones((2, 3))}, saved, ["w"], transpose=["w"])
    >>> int(state.count), state.slots["momentum"]["w"].tolist()
    (0, [[-0.5, -0.5, -0.5], [-0.5, -0.5, -0.5]])

    Torch's SGD counts no steps. With a schedule, set `state._replace(count=jnp.int32(n))`.

    Raises:
        TypeError: if `state_dict` is none. ValueError: if `order` does not name every parameter once, if a shape does
        not match, or if torch has no such optimizer.
    """
    check_arguments(from_torch, kernel=kernel, params=params)
    numbers, arrays = _numbers(state_dict), by_path(params)
    _check_order(order, numbers, arrays)
    kept = {path: state_dict["state"].get(i, {}) for path, i in zip(order, numbers, strict=True)}
    steps = {path: int(_numpy(own["step"])) for path, own in kept.items() if "step" in own}
    counts = {
        slot_name(path, OWN_COUNT): np.asarray(n, np.int32)
        for path, n in steps.items()
        if groups(kernel)[group_of(kernel, path)].options.own_counts
    }
    if len(set(steps.values())) > 1 and len(counts) < len(steps):
        warnings.warn(
            f"Torch has counted {min(steps.values())} to {max(steps.values())} steps of these parameters. The greatest "
            "is taken. With `own_counts=True` the kernel counts as torch does.",
            stacklevel=2,
        )
    library = Library("torch", TABLE, kernel, kernel.hyper(), max(steps.values(), default=0))
    found, products = {}, {}
    for path, own in kept.items():
        values = {name: _numpy(x) for name, x in own.items() if x is not None}
        found[path] = {n: np.transpose(x, _axes(transpose, path, x.ndim)) for n, x in values.items() if n in SLOTS}
        if PRODUCT in values:
            products[scalar_name(group_of(kernel, path), U_PRODUCT)] = values[PRODUCT]
    return from_dict(kernel, params, library.ours({path: arrays[path] for path in kept}, found) | products | counts)


def to_torch(
    kernel: Kernel, state: State, state_dict: Mapping[str, Any], order: Sequence[str], transpose: Transposed = ()
) -> dict[str, Any]:
    """Converts a state of `kernel` into a `state_dict` of a `torch.optim` optimizer, which continues the training.

    Args:
        kernel: the kernel that made `state`.
        state: the state.
        state_dict: the fresh optimizer's. Its `param_groups`, with the hyperparameters, are taken over.
        order, transpose: as in `from_torch`.

    Returns:
        The argument of the optimizer's `load_state_dict`.

    Raises:
        ImportError: if torch is not installed. TypeError, ValueError: as in `from_torch`.
    """
    check_arguments(to_torch, kernel=kernel, state=state)
    torch = optional("torch", "`to_torch`", "torch")
    flat = flatten(leaves(state), portable=True)
    slots = rule_slots(flat)
    numbers = _numbers(state_dict)
    _check_order(order, numbers, dict.fromkeys(order))
    if left := slots.keys() - set(order):
        raise ValueError(f"`order` must name all parameters with slots. Received: order={order!r} without {left}")
    library, states = Library("torch", TABLE, kernel, kernel.current(state), state.count), {}
    for path, i in zip(order, numbers, strict=True):
        own = {name: _torchable(x) for name, x in slots.get(path, {}).items()}
        new = library.theirs(path, next(iter(own.values())), own) if own else {}
        for name, x in new.items():
            x = np.transpose(x, np.argsort(_axes(transpose, path, x.ndim)))
            new[name] = torch.tensor(np.array(x, order="C"))
        group = group_of(kernel, path)
        scalars = of_group(state.scalars, group)
        if U_PRODUCT in scalars:
            new[PRODUCT] = torch.tensor(float(scalars[U_PRODUCT]))
        if new and "momentum_buffer" not in new or "square_avg" in new:  # SGD counts no steps
            step = scalars[STEP] if group else state.count
            new["step"] = torch.tensor(float(flat.get(slot_name(path, OWN_COUNT), step)))
        if new:
            states[i] = new
    return {"state": states, "param_groups": state_dict["param_groups"]}


def _numbers(state_dict: Any) -> list[Any]:
    """Torch's indices of the parameters, in order."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "`state_dict` must be that of a torch.optim optimizer, with `state` and `param_groups`. Received: "
            f"{type(state_dict).__name__} {[*state_dict] if isinstance(state_dict, Mapping) else ''}"
        )
    return [i for group in state_dict["param_groups"] for i in group["params"]]


def _check_order(order: Any, numbers: list[Any], known: Mapping[str, Any]) -> None:
    if isinstance(order, str) or len(order) != len(numbers) or len(set(order)) != len(order):
        raise ValueError(
            f"`order` must name each of torch's {len(numbers)} parameters once, by our path. Received: order={order!r}"
        )
    unknown = [path for path in order if path not in known]
    if unknown:
        raise ValueError(f"`order` must contain paths of our parameters, {[*known]}. Received: also {unknown}")


def _axes(transpose: Transposed, path: str, ndim: int) -> tuple[int, ...]:
    """The axes to transpose torch's array with."""
    patterns = transpose if isinstance(transpose, Mapping) else dict.fromkeys(transpose)
    for pattern, axes in patterns.items():
        if re.search(pattern, path) and (axes is not None or ndim == 2):
            return tuple(axes or (1, 0))
    return tuple(range(ndim))


def _torchable(x: Any) -> np.ndarray:
    """A NumPy array that torch can read: it cannot read bfloat16. `load_state_dict` casts to the parameter's dtype."""
    return np.array(x, np.float32 if x.dtype == jnp.bfloat16 else None)


def _numpy(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
