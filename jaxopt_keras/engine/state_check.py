"""Checks that a state fits the options and the parameters of a step, once for each structure: while it is traced."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.core import Core, Layout, Slots
from jaxopt_keras.engine.kinds import Kinds
from jaxopt_keras.engine.native import Unavailable, unavailable
from jaxopt_keras.engine.native.build import fallback, say
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.language.places import platform
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.storage.blockwise import Blocks, Cut, foreign_blocks, quantize
from jaxopt_keras.storage.masters import MASTER
from jaxopt_keras.storage.tiles import straddling

REMEDY = (
    "Make a new state with `kernel.init(params)`, or convert this one: `from_dict(kernel, params, to_dict(state))` of "
    "`jaxopt_keras.checkpoint`."
)


def check_names(kind: str, found: Iterable[str], kept: Iterable[str]) -> None:
    """Raise a ValueError if a state lacks arrays that a program keeps, or has others, which no step would change.

    Args:
        kind: "slots" or "scalars"; `found` are their names in the state, and `kept` those of the program.
    """
    found, kept = list(dict.fromkeys(found)), list(kept)
    missing, extra = [n for n in kept if n not in found], [n for n in found if n not in kept]
    if missing or extra:
        without = f" without the {kind} {missing}" if missing else f" with the {kind} {extra} too"
        raise ValueError(
            "`state` must come from this optimizer: from its `init`, or from an earlier step. Received: one"
            f"{without}. It has the {kind} {found}, and this optimizer keeps {kept or 'none'}. {REMEDY}"
        )


def check_slots(
    core: Core, layout: Layout, params: list[Any], found: list[Slots], initial: Callable[..., Any], all_exact: bool
) -> None:
    """Raise a ValueError for the first slot that has another shape or format than a fresh one.

    Args:
        found: the slots of each parameter in the state.
        initial: returns those of fresh parameters, from a layout and these.
        all_exact: whether the dtypes of all slots are an option. Those other than masters may otherwise have been cast.
    """
    layout, (params, found) = Kinds.read(core, layout, params, found).one_of_each(layout, params, found)
    fresh = jax.eval_shape(partial(initial, layout), params)
    exact = {name for each in fresh for name in each} if all_exact else {MASTER}
    for leaf, slots, new in zip(layout.leaves, found, fresh, strict=True):
        for name in sorted(slots.keys() | new.keys()):
            have, want = slots.get(name), new.get(name)
            if isinstance(have, Blocks) and isinstance(want, Blocks):  # any blocks will do
                whole = jax.ShapeDtypeStruct(want.shape, want.dtype)
                want = jax.eval_shape(partial(quantize, code=want.code, tiles=have.tiles), whole)
            if name in new and _form(have, name in exact) != _form(want, name in exact):
                where = f"{name}` of `{leaf.path}" if leaf.path else name
                raise ValueError(
                    f"`state` must be of these parameters and options. Received: the slot `{where}` as {_text(have)}, "
                    f"where this optimizer keeps {_text(want)}. {REMEDY}"
                )


def check_blocks(slots: Any, options: Options) -> None:
    """Say, once, that a state has blocks of another platform: they are right there too, and slow.

    Rows that are updated one by one (`sparse="lazy"`) have blocks of the last axis everywhere.

    Raises:
        Unavailable: with `engine="native"`, or `JAXOPT_KERAS_FALLBACK=error`.
    """
    here = platform()
    if isinstance(slots, Packed):
        return
    if options.sparse == "lazy" or (here != "tpu" and (options.engine not in ("auto", "native") or unavailable())):
        return
    everything = [(n, *x) for n, tree in slots.items() for x in leaves_by_path(tree, lambda x: isinstance(x, Blocks))]
    found = [(path, name, text) for name, path, x in everything if (text := foreign_blocks(x, here))]
    if found:
        path, name, text = found[0]
        text = f"the slot `{name}{f'` of `{path}' if path else ''}` is in {text}. {REMEDY}"
        if here == "tpu":
            return say("A TPU turns blocks, parameter and gradient around and back in each step: %s", text)
        if options.engine == "native":
            raise Unavailable(text)
        fallback(Unavailable(text))


def check_shards(params: Any, state: Any) -> None:
    """Raise a ValueError for the first slot of which a block is on two devices, as its parameter is split.

    Each step would gather it. `init` sees how parameters are split, but not in a `jit` of the user's.
    """
    if params is None or isinstance(params, Packed) or isinstance(state.slots, Packed):
        return
    arrays = {path: p for path, p in leaves_by_path(params) if isinstance(p, jax.Array)}
    for name, tree in state.slots.items():
        for path, x in leaves_by_path(tree, lambda x: isinstance(x, Blocks)):
            p = arrays.get(path)
            if p is None or not isinstance(x, Blocks) or p.shape != x.shape:
                continue
            cut = Cut.of(x.shape, x.code, x.tiles)
            own = p.sharding.shard_shape(p.shape)[cut.axis]
            if own != cut.n and own % cut.block:
                raise ValueError(
                    f"{straddling(cut.blocks, cut.n // own)} It is the slot `{name}` of `{path}`, in a state that "
                    f"was made where its shards were not known, such as in your own `jit`. {REMEDY}"
                )


def _form(slot: Any, exact: bool) -> Any:
    leaves, treedef = jax.tree.flatten(slot)  # of a quantized slot: its codes and scales, and the code
    kinds = [x.dtype if exact or not jax.numpy.issubdtype(x.dtype, np.inexact) else "float" for x in leaves]
    return treedef, [np.shape(x) for x in leaves], kinds


def _text(slot: Any) -> str:
    if slot is None:
        return "absent"
    code = getattr(slot, "code", None)
    return f"{slot.dtype if code is None else code.name}{list(np.shape(slot))}"
