"""Conversion to and from Keras 3: the `variables` of an optimizer, as a list or in a `.weights.h5` file."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxopt_keras.checkpoint import hdf5
from jaxopt_keras.checkpoint.arguments import check_arguments
from jaxopt_keras.checkpoint.conventions import Library, kind_of
from jaxopt_keras.checkpoint.kernels import groups, of_group, rule_of
from jaxopt_keras.checkpoint.names import STEP, by_parameter, flatten, leaves, rule_slots, slot_name, transposed
from jaxopt_keras.checkpoint.restore import by_path
from jaxopt_keras.checkpoint.saving import from_dict
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.state import State
from jaxopt_keras.optimizers import RULES
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.state_views import slot_groups

TABLE = {rule.__name__: {slot: slot for slot in rule.State._fields} for rule in RULES.values()}
TABLE |= {"AdamPart": TABLE["Adam"]}  # the parameters that Muon leaves to Adam
RATE = "hyper/learning_rate"
VARIABLES = "optimizer/vars"  # the group in a .weights.h5 file


Layout = list[tuple[str, tuple[int, ...]]]  # our name of each variable, "" without a counterpart here; and its shape


def from_keras(kernel: Kernel, params: Any, variables: Any, order: Sequence[str] | None = None) -> State:
    """Converts the state of a Keras 3 optimizer into a state of `kernel`, which continues the training.

    Args:
        kernel: a kernel with one rule, in its Keras variant. If Keras's optimizer accumulates gradients, the kernel
            must accumulate as many. It keeps its own rate; a momentum that contains Keras's rate is divided by it.
        params: the parameters.
        variables: `optimizer.variables`, a list of arrays in the same order, the optimizer, or the path of a
            `.weights.h5` file.
        order: the paths of our parameters in the order of Keras's. Default: None, the order of `params`; for dicts,
            that of the sorted keys.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> variables = [10, 0.001, jnp.ones((3, 2)), jnp.ones((3, 2)) * 4, jnp.zeros(2), jnp.ones(2)]
    >>> params = {"bias": jnp.zeros(2), "kernel": jnp.ones((3, 2))}
    >>> state = from_keras(jk.adam(), params, variables, order=["kernel", "bias"])
    >>> int(state.count), state.slots["velocity"]["bias"].tolist()
    (10, [1.0, 1.0])

    Raises:
        OSError: if there is no such file. TypeError: for a kernel with several rules. ValueError: if the number or the
        shapes of `variables` do not match (the message lists them), or if `order` does not name every parameter.
    """
    check_arguments(from_keras, kernel=kernel, params=params)
    arrays, plain = _ordered(params, order), _plain(kernel)
    own = rule_slots(flatten(leaves(kernel.init(params)), portable=True))
    layouts = [
        _layout(plain, own, arrays, rate, averages)
        for rate in (True, False)
        for averages in (plain.options.use_ema, not plain.options.use_ema)
    ]
    with _opened(variables) as stored:
        shapes = [tuple(x.shape) for x in stored]
        layout = next((layout for layout in layouts if [shape for _, shape in layout] == shapes), None)
        if layout is None:
            shown = ", ".join(f"`{name or 'unused'}` {shape}" for name, shape in layouts[0])
            raise ValueError(
                f"`variables` must be those of Keras's {kind_of(plain.rule, TABLE)}: {shown}; the rate and the "
                f"averages may be missing. Received: {shapes}. Check the order and the settings of both optimizers."
            )
        flat: dict[str, Any] = {name: _read(x) for (name, _), x in zip(layout, stored, strict=True) if name}
    rate = flat.pop(RATE, None)
    every = _calls(plain)
    step, micro = divmod(int(flat[STEP]), every)
    if every > 1:
        flat[f"scalars/{MICRO_STEP}"] = np.asarray(micro, np.int32)
    library = Library("keras", TABLE, kernel, kernel.hyper(), step, None if rate is None else float(rate))
    return from_dict(kernel, params, flat | library.ours(arrays, by_parameter(flat)))


def to_keras(kernel: Kernel, state: State, params: Any, order: Sequence[str] | None = None, path: Any = None) -> list:
    """Converts a state of `kernel` into the variables of a Keras 3 optimizer, which continues the training.

    Args:
        kernel: the kernel that made `state`; as in `from_keras`.
        state: the state.
        params: the parameters, for their shapes.
        order: as in `from_keras`.
        path: a `.weights.h5` file that a model with such an optimizer saved. The variables of the optimizer in it are
            overwritten. Default: None, no file.

    Returns:
        NumPy arrays in the order of Keras's `optimizer.variables`, for `variable.assign(array)`.

    Raises:
        OSError: if there is no such file. TypeError, ValueError: as in `from_keras`.
    """
    check_arguments(to_keras, kernel=kernel, state=state, params=params)
    arrays, plain, flat = _ordered(params, order), _plain(kernel), flatten(leaves(state), portable=True)
    own = rule_slots(flat)
    layout = _layout(plain, own, arrays, "learning_rate" not in plain.core.schedules(), plain.options.use_ema)
    every, hyper = _calls(plain), kernel.current(state)
    flat[STEP] = np.asarray(state.count * every + flat.get(f"scalars/{MICRO_STEP}", 0), np.int32)
    flat |= {f"hyper/{name}": x for name, x in of_group(hyper, next(iter(groups(kernel)))).items()}
    library = Library("keras", TABLE, kernel, hyper, state.count)
    for name, p in arrays.items():
        slots = {slot: np.array(x) for slot, x in own.get(name, {}).items()}
        flat |= {slot_name(name, slot): x for slot, x in library.theirs(name, p, slots).items()}
    found = [np.array(flat[name]) if name in flat else np.zeros(shape, np.float32) for name, shape in layout]
    if path is not None:
        _replace(path, found)
    return found


def _layout(plain: Kernel, slots: dict[str, Any], params: dict[str, Any], rate: bool, averages: bool) -> Layout:
    """Keras's variables in order: iteration, rate, averages, sums of gradients, slots group by group, scalars."""
    rule: Any = plain.rule
    around = [name for name, is_on in ((AVERAGE, averages), (SUM, plain.options.gradient_accumulation_steps)) if is_on]
    layout: Layout = [(STEP, ()), *([(RATE, ())] if rate else [])]
    layout += [(slot_name(path, name), p.shape) for name in around for path, p in params.items()]
    factored = kind_of(rule, TABLE) == "Adafactor"  # Keras keeps all three slots for every parameter
    for group in [rule.State._fields] if factored else slot_groups(State(0, {}, {}, transposed(slots)), rule, []):
        for path, p in params.items():
            for slot in group:
                if slot in slots.get(path, ()):
                    layout.append((slot_name(path, slot), slots[path][slot].shape))
                elif factored:
                    layout.append(("", p.shape if slot == "velocity" else ()))
    scalars = rule.scalars()
    return layout + [(f"scalars/{name}", ()) for name in (scalars._fields if scalars else ())]


def _plain(kernel: Kernel) -> Kernel:
    found = [*groups(kernel).values()]
    if len(found) > 1 or not kind_of(rule_of(found[0]), TABLE):
        raise TypeError(f"`kernel` must have one rule, as Keras's optimizers do. Received: kernel={kernel!r}")
    return found[0]


def _calls(plain: Kernel) -> int:
    """The calls for each update: Keras counts calls, a kernel counts updates."""
    length: Any = plain.options.gradient_accumulation_steps or 1
    if callable(length) or plain.options.weighted_accumulation:
        raise ValueError(
            "`kernel` must accumulate a fixed number of calls, without weights, as Keras's optimizers do. Received: "
            f"kernel={plain!r}"
        )
    return length


def _ordered(params: Any, order: Any) -> dict[str, Any]:
    """The parameters by path, in the order of Keras's."""
    arrays = by_path(params)
    if order is not None and (isinstance(order, str) or sorted(order) != sorted(arrays)):
        raise ValueError(f"`order` must name each of {[*arrays]} once. Received: order={order!r}")
    return {path: arrays[path] for path in order or arrays}


def _opened(variables: Any) -> contextlib.AbstractContextManager[list[Any]]:
    """Keras's variables: arrays, or datasets of a file, whose numbers are not read yet."""
    if isinstance(variables, (str, Path)):
        return hdf5.opened(variables, VARIABLES, "r")
    variables = getattr(variables, "variables", variables)
    if not isinstance(variables, Iterable) or isinstance(variables, Mapping):
        raise TypeError(f"`variables` must be a list, an optimizer or a path. Received: {type(variables).__name__}")
    return contextlib.nullcontext([np.array(x.numpy() if hasattr(x, "numpy") else x) for x in variables])


def _replace(path: Any, values: list[np.ndarray]) -> None:
    with hdf5.opened(path, VARIABLES, "r+") as stored:
        shapes = [tuple(x.shape) for x in stored]
        if shapes != [x.shape for x in values]:
            raise ValueError(f"{path} must have variables of shapes {[x.shape for x in values]}. Received: {shapes}")
        for old, x in zip(stored, values, strict=True):
            old[...] = x.astype(hdf5.dtype_of(old)).view(old.dtype)


def _read(stored: Any) -> np.ndarray:
    return stored if isinstance(stored, np.ndarray) else hdf5.read(stored)
