"""Registers the nodes of a state with two serializers of pytrees: `jax.export` and flax.serialization.

Others (Orbax, Equinox, pickle) take the leaves of any registered pytree.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import optax

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import Complements
from jaxopt_keras.language.optional import when_imported
from jaxopt_keras.packing.parts import Part, arrangement_of
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.storage.blockwise import Blocks, Code
from jaxopt_keras.storage.tiles import Tiles


def register_with_flax(serialization: Any) -> None:
    """Registers quantized and packed slots with flax.serialization, which knows only containers and arrays."""

    def register(kind: type, *fields: str) -> None:
        def restored(old: Any, saved: Any) -> Any:
            where = f"at path {serialization.current_path()}"
            if not isinstance(saved, Mapping) or saved.keys() != {*fields}:
                raise ValueError(
                    f"A {kind.__name__} must have {fields} {where}. Received: {type(saved).__name__}. The state was "
                    "saved with other options: use `jaxopt_keras.checkpoint`, which converts it."
                )
            parts = {name: serialization.from_state_dict(getattr(old, name), saved[name], name=name) for name in fields}
            new = dataclasses.replace(old, **parts)
            wanted, found = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (old, new))
            if wanted != found:
                raise ValueError(f"A {kind.__name__} must have arrays of {wanted} {where}. Received: {found}")
            return new

        to_dict = lambda x: {name: serialization.to_state_dict(getattr(x, name)) for name in fields}
        serialization.register_serialization_state(kind, to_dict, restored, override=True)

    register(Blocks, "codes", "scales")
    register(Packed, "buffers", "loose")


def register_with_export() -> None:
    """Registers the nodes of a state with `jax.export`, whose files contain the structure of arguments and results."""
    for kind in (State, Complements, optax.MaskedNode):
        with contextlib.suppress(ValueError):  # another library has registered optax's
            jax.export.register_namedtuple_serialization(kind, serialized_name=f"{kind.__module__}.{kind.__name__}")
    jax.export.register_pytree_node_serialization(
        Blocks,
        serialized_name="jaxopt_keras.Blocks",
        serialize_auxdata=lambda aux: json.dumps(aux).encode(),
        deserialize_auxdata=lambda saved: _block_format(json.loads(saved)),
    )
    jax.export.register_pytree_node_serialization(
        Packed,
        serialized_name="jaxopt_keras.Packed",
        serialize_auxdata=lambda aux: json.dumps([aux[0].parts, _plan(aux[0].treedef)]).encode(),
        deserialize_auxdata=_arrangement,
    )


def _block_format(static: Any) -> tuple[Code, int, Tiles | None]:
    code, length, *tiles = static
    return Code(*code), length, Tiles(*tiles[0]) if any(tiles) else None


def _arrangement(saved: bytes) -> Any:
    parts, plan = json.loads(saved)
    found = tuple(Part(path, buffer, tuple(shape), offset) for path, buffer, shape, offset in parts)
    return (arrangement_of(found, jax.tree.structure(_tree(plan))),)


def _plan(treedef: Any) -> Any:
    """The structure of a tree as JSON: the kind, the static data and the children of each node; 0 for a leaf."""
    if (node := treedef.node_data()) is None:
        return 0
    kind, static = node
    if kind.__name__ not in MAKERS:
        raise TypeError(
            f"Packed trees of {[*MAKERS]} can be exported. Received: {kind.__name__}. Use an unpacked tree, and a "
            "kernel without `flat_state`."
        )
    return kind.__name__, static if kind in (dict, Blocks) else None, [_plan(child) for child in treedef.children()]


def _tree(plan: Any) -> Any:
    if plan == 0:
        return 0
    kind, static, children = plan
    return MAKERS[kind](static, [_tree(child) for child in children])


MAKERS = {
    "dict": lambda keys, children: dict(zip(keys, children, strict=True)),
    "list": lambda _, children: children,
    "tuple": lambda _, children: tuple(children),
    "NoneType": lambda _, children: None,
    "MaskedNode": lambda _, children: optax.MaskedNode(),
    "Blocks": lambda static, children: Blocks(children[0], children[1], *_block_format(static)),
}

register_with_export()
when_imported("flax.serialization", register_with_flax)
