"""Conversion to and from optax: the states of its optimizers, inside any chain."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves

from jaxopt_keras.checkpoint.arguments import check_arguments
from jaxopt_keras.checkpoint.conventions import Library
from jaxopt_keras.checkpoint.kernels import groups
from jaxopt_keras.checkpoint.names import flatten, leaves, rule_slots, slot_name, transposed
from jaxopt_keras.checkpoint.restore import Place, by_path, restored
from jaxopt_keras.checkpoint.saving import from_dict, to_dict
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM, WEIGHTS
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import map_by_path
from jaxopt_keras.pure.kernel import Kernel

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
COUNTS = ("count", "gradient_step")
WINDOW, ACCUMULATED = "MultiStepsState", "acc_grads"
PLACEHOLDERS = ("v", "v_row", "v_col", "trace", ACCUMULATED)  # optax fills them with dummies where it keeps no slot


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
    check_arguments(from_optax, kernel=kernel, params=params)
    nodes = [*_nodes(opt_state)]
    if not nodes:
        raise ValueError(f"`opt_state` must be a state of an optax optimizer. Received: {type(opt_state).__name__}")
    if ours := [node for node in nodes if isinstance(node, State)]:  # a kernel inside an optax wrapper
        return from_dict(kernel, params, to_dict(ours[0]))
    found: dict[str, dict[str, Any]] = {}
    counts, window = [0], dict[str, Any]()
    for node in nodes:
        for field in FIELDS.get(type(node).__name__, ()):
            found.setdefault(field, {}).update(by_path(getattr(node, field)))
        counts += [int(getattr(node, field)) for field in COUNTS if field in node._fields]
        if type(node).__name__ == WINDOW:
            window[f"scalars/{MICRO_STEP}"] = node.mini_step
            accumulated = by_path(node.acc_grads).items()
            window |= {slot_name(path, SUM): x * float(node.mini_step) for path, x in accumulated}
    library = Library("optax", TABLE, kernel, kernel.hyper(), max(counts))
    return from_dict(kernel, params, library.ours(by_path(params), transposed(found)) | window)


def to_optax(kernel: Kernel, state: State, template: Any) -> Any:
    """Converts a state of `kernel` into a state of an optax optimizer, which continues the training.

    Args:
        kernel: the kernel that made `state`; its rate gives the units of the momentum.
        state: the state.
        template: `tx.init(params)` of the optax optimizer. All other values are taken from it.

    Raises:
        ValueError: if the template has a slot that the rule lacks, or an array of another shape.
    """
    check_arguments(to_optax, kernel=kernel, state=state)
    if not [*_nodes(template)]:
        raise ValueError(f"`template` must be a state of an optax optimizer. Received: {type(template).__name__}")
    flat = flatten(leaves(state), portable=True)
    micro, slots = flat.get(f"scalars/{MICRO_STEP}", 0), rule_slots(flat)
    parts = float(flat.get(f"scalars/{WEIGHTS}", micro)) if int(micro) else 0
    numbers = dict.fromkeys(COUNTS, state.count) | {"mini_step": micro}
    library = Library("optax", TABLE, kernel, kernel.current(state), state.count)

    def array(field: str, path: str, old: Any) -> Any:
        own, total = slots.get(path, {}), flat.get(slot_name(path, SUM))
        if field != ACCUMULATED:
            found = library.theirs(path, old, own)
        else:
            found = {} if total is None else {field: total / (parts or 1)}
        if field not in found and field not in PLACEHOLDERS:
            raise ValueError(
                f"The kernel has no slot for optax's `{field}` of `{path}`: it keeps {[*own]}. Pass as `template` "
                "the state of the optax optimizer that computes the same."
            )
        x = found.get(field, old)
        if x.shape != old.shape:
            raise ValueError(
                f"`{field} of {path}` must have the shape {old.shape}, as in the template. Received: shape {x.shape}"
            )
        return jnp.asarray(x, old.dtype)

    def fill(node: Any) -> Any:
        if isinstance(node, State):  # a kernel inside an optax wrapper
            return restored(Place(node, groups(kernel), {}, {}), to_dict(state, on_host=False), hyper=False)
        if not hasattr(node, "_fields"):
            return node if all_leaves([node]) else jax.tree.map(fill, node, is_leaf=lambda x: x is not node)
        new = {}
        for field in node._fields:
            x = getattr(node, field)
            if field in FIELDS.get(type(node).__name__, ()) or field == ACCUMULATED:
                new[field] = map_by_path(lambda path, old, field=field: array(field, path, old), x)
            else:
                new[field] = jnp.asarray(numbers[field], x.dtype) if field in numbers else fill(x)
        return type(node)(**new)

    return fill(template)


def _nodes(tree: Any) -> Iterator[Any]:
    """The named tuples in a state, outer ones first."""
    if hasattr(tree, "_fields"):
        yield tree
    if type(tree).__name__ not in FIELDS and not all_leaves([tree]):
        for child in jax.tree.leaves(tree, is_leaf=lambda x: x is not tree):
            yield from _nodes(child)
