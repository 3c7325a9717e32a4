"""Slots between steps as one buffer for each dtype: a step over many small arrays then hands over a third of them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.packing.trees import Packed, pack

# More elements than this are by themselves: handing such an array over costs little beside going through it.
LARGE = 65536


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flat:
    """A pytree of arrays whose small ones lie in buffers. Made by `flat`."""

    small: Packed  # of a list
    rest: list[Any]  # the others: large ones, those of one element, and empty ones
    treedef: Any = field(metadata={"static": True})
    is_small: tuple[bool, ...] = field(metadata={"static": True})

    def unpack(self) -> Any:
        """The tree of arrays."""
        small, rest = iter(self.small.unpack()), iter(self.rest)
        return jax.tree.unflatten(self.treedef, [next(small if x else rest) for x in self.is_small])

    def like(self, tree: Any) -> "Flat":
        """A tree of the same structure and shapes, laid out in the same way."""
        small, rest = _parted(jax.tree.leaves(tree), self.is_small)
        return Flat(self.small.like(small), rest, self.treedef, self.is_small)


def flat(tree: Any, apart: Collection[str] = ()) -> Flat:
    """A pytree of arrays with the small ones in one buffer for each dtype, but for those with a key of `apart`."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [x for _, x in keyed]
    is_small = tuple(
        1 < x.size <= LARGE
        and jnp.issubdtype(x.dtype, jnp.number)
        and not {getattr(k, "key", None) for k in key} & {*apart}
        for key, x in keyed
    )
    small, rest = _parted(leaves, is_small)
    return Flat(pack(small), rest, treedef, is_small)


def unpacked(slots: Any) -> Any:
    """Slots as a tree that mirrors the parameters, however they are laid out."""
    return slots.unpack() if isinstance(slots, Flat) else slots


def _parted(leaves: list[Any], is_small: tuple[bool, ...]) -> tuple[list[Any], list[Any]]:
    everything = list(zip(leaves, is_small, strict=True))
    return [x for x, small in everything if small], [x for x, small in everything if not small]
