"""Parameters of one kind have the same slots at first: one of each kind is looked at, whatever their number is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxopt_keras.engine.core import Core, Layout, Slots
from jaxopt_keras.language.places import place_of


class Kinds(NamedTuple):
    """Which parameters are of one kind."""

    first: list[int]  # the number of the first parameter of each kind
    of: list[int]  # the kind of each parameter

    @classmethod
    def read(cls, core: Core, layout: Layout, params: list[Any], slots: Sequence[Slots] = ()) -> "Kinds":
        """Return the kinds of parameters; with `slots`, those of one kind also have slots of the same forms."""
        # A core that does not say what else decides about the first slots has a kind for each path.
        kind = getattr(core, "kind", lambda leaf, p: leaf.path)
        numbers, first, of = dict[Any, int](), list[int](), list[int]()
        for i, (leaf, p) in enumerate(zip(layout.leaves, params, strict=True)):
            key = kind(leaf, p), jax.typeof(p), place_of(leaf.path, p), _forms(slots[i]) if slots else ()
            if key not in numbers:
                numbers[key] = len(first)
                first.append(i)
            of.append(numbers[key])
        return cls(first, of)

    def one_of_each(self, layout: Layout, *columns: Sequence[Any]) -> tuple[Layout, list[list[Any]]]:
        """Return the first parameters of their kinds: the layout, and the entries in lists of all parameters."""
        leaves, *some = ([column[i] for i in self.first] for column in (layout.leaves, *columns))
        return layout._replace(leaves=tuple(leaves)), some


def _forms(slots: Slots) -> Any:
    arrays, treedef = jax.tree.flatten(slots)
    return treedef, *((x.shape, x.dtype) for x in arrays)
