"""Conversion to and from optax: the states of its optimizers, inside any chain."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint.conventions import Library
from jaxopt_keras.checkpoint.kernels import groups
from jaxopt_keras.checkpoint.names import FORMAT, STEP, VERSION, by_parameter, flatten, leaves, slot_name
from jaxopt_keras.checkpoint.restore import Place, by_path, restored
from jaxopt_keras.checkpoint.saving import from_dict, to_dict
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.state_views import OPTION_SLOTS

MOMENTS = {"momentum": "mu", "velocity": "nu"}
TABLE = {  # docs/from_optax.md has it too
    "Adam": MOMENTS | {"velocity_hat": "nu_max"},
    **dict.fromkeys(("Nadam", "Lamb", "AdamPart"), MOMENTS),
    "Adamax": {"momentum": "mu", "norm": "nu"},
    "Lion": {"momentum": "mu"},
    "Muon": {"momentum": "mu"},
    "SGD": {"momentum": "trace"},
    "RMSprop": {"velocity": "nu", "average_gradient": "mu", "momentum": "trace"},
    "Adagrad": {"accumulator": "sum_of_squares"},
    "Adadelta": {"accumulated_grad": "e_g", "accumulated_delta_var": "e_x"},
    "Adafactor": {"row": "v_row", "column": "v_col", "velocity": "v"},
}
FIELDS = {
    "ScaleByAdamState": ("mu", "nu"), "ScaleByAmsgradState": ("mu", "nu", "nu_max"), "ScaleByLionState": ("mu",),
    "TraceState": ("trace",), "ScaleByRmsState": ("nu",), "ScaleByRmsWithCountState": ("nu",),
    "ScaleByRStdDevState": ("mu", "nu"), "ScaleByRStdDevWithCountState": ("mu", "nu"),
    "ScaleByRssState": ("sum_of_squares",), "ScaleByAdaDeltaState": ("e_g", "e_x"),
    "FactoredState": ("v_row", "v_col", "v"), "MuonState": ("mu",),
}  # fmt: skip
COUNT, WINDOW = "count", "MultiStepsState"
PLACEHOLDERS = ("v", "v_row", "v_col", "trace")  # optax fills them with dummies where it keeps no slot


def from_optax(kernel: Kernel, params: Any, opt_state: Any) -> State:
    """Converts the state of an optax optimizer into a state of `kernel`, which continues the training.

    Args:
        kernel: any kernel that computes the same: `variant="optax"`, and the same hyperparameters.
        params: the parameters.
        opt_state: the state of optax's adam, adamw, amsgrad, nadam, adamax, lamb, lion, sgd, rmsprop, adagrad,
            adadelta, adafactor or muon, or of a kernel of this library. It may be inside a `chain`,
            `inject_hyperparams`, `masked`, `partition`, `apply_if_finite` or `MultiSteps` (of mean gradients).

    >>> import jax.numpy as jnp, jaxopt_keras as jk, optax
    >>> params = {"w": jnp.ones(3)}
    >>> tx = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
    >>> updates, opt_state = tx.update(params, tx.init(params), params)
    >>> state = from_optax(jk.adamw(1e-3, clipvalue=1.0, variant="optax"), params, opt_state)
    >>> int(state.count), state.slots["momentum"]["w"]
    (1, Array([0.1, 0.1, 0.1], dtype=float32))

    Raises:
        ValueError: if `opt_state` contains no state of a known optimizer, or if the rule has no counterpart in optax.
    """
    if ours := [node for node in _nodes(opt_state) if isinstance(node, State)]:  # a kernel inside an optax wrapper
        return from_dict(kernel, params, to_dict(ours[0]))
    found: dict[str, dict[str, Any]] = {}
    counts, flat = [0], dict[str, Any]({FORMAT: np.asarray(VERSION, np.int32)})
    for node in _nodes(opt_state):
        for field in FIELDS.get(type(node).__name__, ()):
            found.setdefault(field, {}).update(by_path(getattr(node, field)))
        counts += [int(np.asarray(getattr(node, COUNT)))] if COUNT in node._fields else []
        if type(node).__name__ == WINDOW:
            counts.append(int(np.asarray(node.gradient_step)))
            flat[f"scalars/{MICRO_STEP}"] = node.mini_step
            accumulated = by_path(node.acc_grads).items()
            flat |= {slot_name(path, SUM): x * float(node.mini_step) for path, x in accumulated}
    if not any(True for _ in _nodes(opt_state)):
        raise ValueError(f"`opt_state` must be a state of an optax optimizer. Received: {type(opt_state).__name__}")
    flat[STEP] = np.asarray(max(counts), np.int32)
    library = Library("optax", TABLE, kernel, kernel.hyper(), flat[STEP])
    for path, p in by_path(params).items():
        for slot in library.slots(path, p):
            if (x := found.get(slot.theirs, {}).get(path)) is not None:
                flat[slot_name(path, slot.ours)] = x * slot.factor
    return from_dict(kernel, params, flat)


def to_optax(kernel: Kernel, state: State, template: Any) -> Any:
    """Converts a state of `kernel` into a state of an optax optimizer, which continues the training.

    Args:
        kernel: the kernel that made `state`; its rate gives the units of the momentum.
        state: the state.
        template: `tx.init(params)` of the optax optimizer. All other values are taken from it.

    Raises:
        ValueError: if the template has a slot that the rule lacks, or an array of another shape.
    """
    flat = flatten(leaves(state), portable=True)
    step = np.asarray(state.count)
    micro = flat.get(f"scalars/{MICRO_STEP}", jnp.zeros((), jnp.int32))
    library = Library("optax", TABLE, kernel, kernel.current(state), step)
    kept = by_parameter(flat)

    def slot(field: str, path: str, old: Any) -> Any:
        own = {name: x for name, x in kept.get(path, {}).items() if name not in OPTION_SLOTS}
        match = next((s for s in library.slots(path, old, own) if s.theirs == field), None)
        if match is None and field not in PLACEHOLDERS:
            raise ValueError(
                f"The kernel has no slot for optax's `{field}` of `{path}`: it keeps {[*own]}. Pass as `template` "
                "the state of the optax optimizer that computes the same."
            )
        return old if match is None else _checked_cast(f"{field} of {path}", own[match.ours] / match.factor, old)

    def accumulated(path: str, old: Any) -> Any:
        total = kept.get(path, {}).get(SUM)
        return old if total is None else _checked_cast(f"acc_grads of {path}", total / max(int(micro), 1), old)

    def fill(node: Any) -> Any:
        if isinstance(node, State):  # a kernel inside an optax wrapper
            return restored(Place(node, groups(kernel), {}), to_dict(state, on_host=False), hyper=False)
        if not hasattr(node, "_fields"):
            return _map_children(node, fill)
        kind, new = type(node).__name__, {}
        for field in node._fields:
            x = getattr(node, field)
            if field in FIELDS.get(kind, ()):
                new[field] = _map_with_paths(lambda path, old, field=field: slot(field, path, old), x)
            elif field in (COUNT, "gradient_step"):
                new[field] = jnp.asarray(step, x.dtype)
            elif kind == WINDOW and field == "mini_step":
                new[field] = jnp.asarray(micro, x.dtype)
            elif kind == WINDOW and field == "acc_grads":
                new[field] = _map_with_paths(accumulated, x)
            else:
                new[field] = fill(x)
        return type(node)(**new)

    return fill(template)


def _nodes(tree: Any) -> Iterator[Any]:
    """The named tuples in a state, outer ones first."""
    if hasattr(tree, "_fields"):
        yield tree
        if type(tree).__name__ in FIELDS:
            return
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ():
        yield from _nodes(child)


def _map_children(node: Any, function: Any) -> Any:
    if isinstance(node, dict):
        return {key: function(x) for key, x in node.items()}
    return type(node)(map(function, node)) if isinstance(node, (tuple, list)) else node


def _map_with_paths(function: Any, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda key, x: function(path_of(key), x), tree)


def _checked_cast(name: str, x: Any, old: Any) -> Any:
    if x.shape != old.shape:
        raise ValueError(f"`{name}` must have the shape {old.shape}, as in the template. Received: shape {x.shape}")
    return jnp.asarray(x, old.dtype)
