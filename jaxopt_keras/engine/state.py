"""What an optimizer keeps between steps. Its small slots may rest in one buffer for as long as nobody looks."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxopt_keras.packing.slots import Flat


class _Fields(NamedTuple):
    step: Any  # int32: the number of updates made
    hyper: dict[str, Any]  # run-time hyperparameters by name: put another value in, and nothing compiles anew
    scalars: dict[str, Any]  # what is kept once for all parameters
    slots: Any


class State(_Fields):
    """All that an optimizer keeps: arrays only, none of them shared, of types that a step does not change.

    `slots` mirrors the parameter tree, with a dict of arrays by slot name in the place of each parameter. To whoever
    looks: a step may leave them in a buffer (`Resting`), where the next step finds them. As a pytree a state is what
    one sees.
    """

    __slots__ = ()

    @property
    def slots(self) -> Any:  # type: ignore[override]  # in the place of a field
        return self._kept.tree if isinstance(self._kept, Resting) else self._kept

    @property
    def held(self) -> Flat | None:
        """The buffer in which the slots rest; None where they do not."""
        return self._kept.held if isinstance(self._kept, Resting) else None

    @property
    def _kept(self) -> Any:
        return tuple.__getitem__(self, 3)

    def __getitem__(self, place: Any) -> Any:
        return (*self,)[place]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.step, self.hyper, self.scalars, self.slots))

    def _replace(self, **changes: Any) -> "State":  # type: ignore[override]  # that of a tuple would look
        return State(**(dict(zip(self._fields, tuple.__iter__(self), strict=True)) | changes))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*tuple.__iter__(self),)

    def __repr__(self) -> str:
        return f"State({', '.join(f'{name}={x!r}' for name, x in zip(self._fields, self, strict=True))})"

    def _children(self) -> tuple[Any, ...]:
        """The parts of the pytree. This is no look: who gets arrays cannot change the dicts that they came from."""
        slots = self._kept.copied() if isinstance(self._kept, Resting) else self._kept
        return self.step, self.hyper, self.scalars, slots


class Resting:
    """Slots in a buffer, taken out of it on the first look."""

    def __init__(self, held: Flat) -> None:
        self._held = held

    @property
    def held(self) -> Flat | None:
        """The buffer; None once somebody has looked, who may change what he saw."""
        return None if "tree" in self.__dict__ else self._held

    @functools.cached_property
    def tree(self) -> Any:
        return _unpacked(self._held)

    def copied(self) -> Any:
        """What a look would show."""
        return self.__dict__.get("tree") or _unpacked(self._held)

    def __reduce__(self) -> Any:
        return _itself, (self.copied(),)


def _itself(tree: Any) -> Any:
    return tree


_unpacked = jax.jit(Flat.unpack)
jax.tree_util.register_pytree_with_keys(
    State,
    lambda state: (tuple(zip(map(jax.tree_util.GetAttrKey, State._fields), state._children(), strict=True)), None),
    lambda _, children: State(*children),
    lambda state: (state._children(), None),
)
