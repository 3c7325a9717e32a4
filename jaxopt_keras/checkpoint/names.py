"""The checkpoint layout, version 1: a name for every array of a state, whatever the options of the optimizer.

format                      the version of the layout
step                        the number of updates
slots/PATH/SLOT             a slot of the parameter at PATH; slots/SLOT if the parameters are one bare array
slots/PATH/SLOT.CODE        the codes of a quantized slot; CODE is int8, uint8, ... (u: unsigned), or int8@-2x256 if its
                            blocks are not of the last axis, but 256 elements of the axis before it
slots/PATH/SLOT.scales      the scales of a quantized slot
scalars/NAME                a number for all parameters: u_product, micro_step, skipped, dynamic_scale, ...
scalars/GROUP/NAME          a number for the parameters of one group; its own step is among them
hyper/NAME                  a hyperparameter, and NAME.complement if it has one; hyper/GROUP/NAME in groups

The stateful face and kernels with `inject_hyperparams` save hyperparameters. Older files of kernels contain them too;
kernels that inject none ignore them.

Packed parameters have the same names as unpacked ones.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_keras.engine.cores.foreign import STATE as FOREIGN
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import Complemented, Complements
from jaxopt_keras.language.paths import keyed_leaves, path_of
from jaxopt_keras.packing.parts import Part
from jaxopt_keras.packing.trees import Packed, concatenate, unpacked
from jaxopt_keras.stateful.state_views import OPTION_SLOTS, device_put_like
from jaxopt_keras.storage import formats
from jaxopt_keras.storage.blockwise import Blocks, Code, dequantize
from jaxopt_keras.storage.tiles import Tiles

VERSION = 1
FORMAT, STEP, SCALES, COMPLEMENT = "format", "step", ".scales", ".complement"
CODES = {
    f"{'' if signed else 'u'}{name}": Code(name, signed)
    for name in ("int8", "int4", "float8", "float16")
    for signed in (True, False)
}
_FORM = re.compile(rf"({'|'.join(CODES)})(?:@(-[1-9])x([1-9]\d{{0,6}}))?")


class Quantized(NamedTuple):
    """A quantized slot as it was saved."""

    codes: Any
    scales: Any
    code: Code
    tiles: Tiles | None = None


def slot_name(path: str, slot: str) -> str:
    return f"slots/{path}/{slot}" if path else f"slots/{slot}"


def scalar_name(group: str, name: str) -> str:
    return f"scalars/{group}/{name}" if group else f"scalars/{name}"


def by_parameter(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The slots in a flat dict, by path and slot name."""
    found: dict[str, dict[str, Any]] = {}
    for name, x in flat.items():
        if name.startswith("slots/"):
            path, _, slot = name.removeprefix("slots/").rpartition("/")
            found.setdefault(path, {})[slot] = x
    return found


def rule_slots(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The slots of rules in a flat dict, by path and slot name; without those of options, such as averages."""
    found = by_parameter(flat)
    return {path: {name: x for name, x in own.items() if name not in OPTION_SLOTS} for path, own in found.items()}


def leaves(state: State, keyed: Any = keyed_leaves) -> dict[str, Any]:
    """The leaves of a state by name: arrays, `Blocks` and `Complemented`s.

    `keyed=jax.tree_util.tree_leaves_with_path` gives the names of older files: the path of a parameter in a box of Flax
    had `/value` at its end.

    Raises:
        ValueError: if two leaves have the same name.
    """
    named, _ = _named_leaves(state, keyed)
    found: dict[str, Any] = {}
    for name, x in named:
        inside = {f"{name}/{n}": y for n, y in leaves(x, keyed).items()} if isinstance(x, State) else {name: x}
        if twice := inside.keys() & found.keys():
            raise ValueError(
                f"Parameters are identified by their paths. Received: two entries with the name `{min(twice)}`. Remove "
                "the slashes from the keys of the parameters."
            )
        found |= inside
    return found


def replaced(state: State, new: dict[str, Any]) -> State:
    """`state` with the leaves in `new`, which are named as by `leaves`."""
    if isinstance(state.slots, Packed):
        new_state = replaced(state._replace(slots=state.slots.unpack()), new)
        return new_state._replace(slots=state.slots.like(new_state.slots))
    keyed, treedef = _named_leaves(state)
    tree = jax.tree.unflatten(treedef, [_replacement(name, x, new) for name, x in keyed])
    slots = tree["slots"]
    if packed := _packed(state.slots):
        like = transposed({slot: tree.buffers for slot, tree in state.slots.items()})
        buffers = transposed(pack(transposed(slots), like, packed.parts))
        masked: dict[str, Any] = dict.fromkeys(packed.buffers, optax.MaskedNode())
        slots = {slot: Packed(masked | buffers.get(slot, {}), [], packed.arrangement) for slot in state.slots}
    return State(tree[STEP], tree["hyper"], tree["scalars"], slots)


def _replacement(name: str, x: Any, new: dict[str, Any]) -> Any:
    """The replacement of the leaf `x`, which may be a whole state."""
    if not isinstance(x, State):
        return new.get(name, x)
    return replaced(x, {n.removeprefix(f"{name}/"): y for n, y in new.items() if n.startswith(f"{name}/")})


def _packed(slots: dict[str, Any]) -> Packed | None:
    """One of the packed trees of slots; None if the slots are not packed."""
    return next((tree for tree in slots.values() if isinstance(tree, Packed)), None)


def transposed(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{a: {b: x}}` as `{b: {a: x}}`. Drops the placeholders of parameters without the slot."""
    found: dict[str, dict[str, Any]] = {}
    for outer, row in table.items():
        for inner, x in row.items():
            if not isinstance(x, optax.MaskedNode):
                found.setdefault(inner, {})[outer] = x
    return found


def _named_leaves(state: State, keyed: Any = keyed_leaves) -> tuple[list[tuple[str, Any]], Any]:
    slots = unpacked(state.slots)
    if packed := _packed(slots):
        slots = transposed(unpack(transposed({slot: tree.buffers for slot, tree in slots.items()}), packed.parts))
    tree = {STEP: state.count, "hyper": state.hyperparams, "scalars": state.scalars, "slots": slots}
    # A nested `State` belongs to a kernel inside an optax transformation.
    is_leaf = lambda x: isinstance(x, (Blocks, Complemented, Complements, State))
    return [(_name(key), x) for key, x in keyed(tree, is_leaf)], jax.tree.structure(tree, is_leaf=is_leaf)


def _name(key: Any) -> str:
    """The name of a leaf. The slot name follows the path of the parameter."""
    kind, *rest = key
    return slot_name(path_of(rest[1:]), rest[0].key) if kind.key == "slots" else path_of(key)


def unpack(buffers: dict[str, Any], parts: Iterable[Part]) -> dict[str, dict[str, Any]]:
    """Unpacks buffers into the slots of each parameter, by path. Quantized slots are dequantized: blocks span parts."""
    slots: dict[str, dict[str, Any]] = {part.path: {} for part in parts}
    for buffer, kept in buffers.items():
        inside = [part for part in parts if part.buffer == buffer]
        for slot, x in kept.items():
            x = jax.device_put(x, jax.memory.Space.Device)  # arithmetic needs device memory
            pieces = jax.lax.split(dequantize(x) if isinstance(x, Blocks) else x, [part.size for part in inside])
            for part, piece in zip(inside, pieces, strict=True):
                slots[part.path][slot] = piece.reshape(part.shape)
    return slots


def pack(slots: dict[str, dict[str, Any]], like: dict[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
    """Packs slots into buffers with the formats of `like`; the inverse of `unpack`."""

    def packed(buffer: str, slot: str, old: Any) -> Any:
        pieces = [jnp.ravel(slots[part.path][slot]) for part in parts if part.buffer == buffer]
        return jax.tree.map(device_put_like, formats.quantize_like(concatenate(pieces), old), old)

    return {buffer: {slot: packed(buffer, slot, x) for slot, x in kept.items()} for buffer, kept in like.items()}


def flatten(found: dict[str, Any], portable: bool) -> dict[str, Any]:
    """Plain arrays by name. Quantized slots become codes and scales, or are dequantized if `portable`."""
    flat: dict[str, Any] = {}
    for name, x in found.items():
        if isinstance(x, (Complemented, Complements)):
            flat[name], flat[name + COMPLEMENT] = x.value, x.complement
        elif isinstance(x, Blocks) and not portable:
            code = next(code for code, known in CODES.items() if known == x.code)
            form = f"{code}@{x.tiles.axis}x{x.tiles.block}" if x.tiles else code
            codes = x.codes.astype(x.code.dtype) if x.tiles else x.codes  # files have no type of four bits
            flat[f"{name}.{form}"], flat[name + SCALES] = codes, x.scales
        elif isinstance(x, Blocks):
            flat[name] = dequantize(x)
        else:
            flat[name] = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return flat


def unflatten(flat: Any) -> dict[str, Any]:
    """Arrays, `Quantized`s and `Complements` by name, of a checkpoint: the inverse of `flatten`.

    Raises:
        TypeError: if `flat` is no mapping from names to arrays. ValueError: if it has no version, or a later one.
    """
    if not isinstance(flat, Mapping):
        raise TypeError(f"A checkpoint must be a mapping from names to arrays. Received: {type(flat).__name__}")
    if FORMAT not in flat:
        raise ValueError(
            f"A checkpoint must have an entry `{FORMAT}`, as `to_dict` writes it. Received: {listed(flat)}"
        )
    declared = isinstance(flat[FORMAT], jax.ShapeDtypeStruct)  # before the file is read
    if not declared and not 1 <= (version := int(np.asarray(flat[FORMAT]))) <= VERSION:
        raise ValueError(
            f"The layout's version must be at most {VERSION}. Received: {FORMAT}={version}. Read it with a newer "
            "jaxopt_keras."
        )
    found: dict[str, Any] = {}
    for name, x in flat.items():
        found[name] = x if isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) else np.asarray(x)
        if found[name].dtype.kind in "OSU":
            raise TypeError(f"`{name}` must be an array. Received: {found[name]!r}")
    del found[FORMAT]
    for name in flat:
        base, _, kind = name.rpartition(".")
        if (form := _FORM.fullmatch(kind)) and base + SCALES in found:
            tiles = Tiles(int(form[2]), int(form[3])) if form[2] else None
            found[base] = Quantized(found.pop(name), found.pop(base + SCALES), CODES[form[1]], tiles)
        elif is_complement(name) and base in found:
            found[base] = Complements(found[base], found.pop(name))
    return found


def is_complement(name: str) -> bool:
    return is_hyper(name) and name.endswith(COMPLEMENT)


def is_hyper(name: str) -> bool:
    """Whether this names a hyperparameter, also one of a kernel inside an optax transformation."""
    inside = name.partition(f"/{FOREIGN}/")[2] if name.startswith("scalars/") else ""
    return name.startswith("hyper/") or "/hyper/" in f"/{inside}"


def listed(names: Iterable[str]) -> str:
    """Names for an error message: the first eight, and how many more there are."""
    names = sorted(names)
    return ", ".join(f"`{name}`" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
