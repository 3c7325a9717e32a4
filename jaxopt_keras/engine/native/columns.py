"""Pass: a scalar that each of many arrays has for itself is computed for all of them at once.

The factor of a clip by the norm of each array, for example: the same equations for each, on other numbers. As a column
they are one small kernel on a GPU, and compile in no time; one by one XLA would compile 148 results of one kernel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.ir import Atom, Constant, Equation, Value
from jaxopt_keras.engine.native.phase import Phase

LONG = 16  # arrays; for fewer it gains nothing
NAMES = {*c.ANY, *c.FLOATING, *c.WHOLE, "convert_element_type", "integer_pow", "not", "stop_gradient", "copy"}


@dataclass(frozen=True, eq=False)
class Column:
    """Scalars of the same equations: what one of them does, on the columns of their inputs."""

    scalars: tuple[Any, ...]  # values or constants
    equation: Equation | None = None  # None: the scalars are known
    inputs: tuple["Column", ...] = ()

    @property
    def is_shared(self) -> bool:
        return all(x is self.scalars[0] or x == self.scalars[0] for x in self.scalars)

    def run(self, known: dict[Any, Any], made: dict["Column", Any]) -> Any:
        """The numbers: one if they are the same, otherwise an array. Adds those of all columns to `made`."""
        if self not in made:
            if (equation := self.equation) is not None:
                inputs = [x.run(known, made) for x in self.inputs]
                axes = tuple(None if x.is_shared else 0 for x in self.inputs)
                made[self] = jax.vmap(lambda *x: equation.run([*x])[0], axes)(*inputs)
            elif self.scalars in known:  # a phase has returned them
                made[self] = known[self.scalars]
            else:
                read = [x.value if isinstance(x, Constant) else known[x] for x in self.scalars]
                made[self] = read[0] if self.is_shared else jnp.stack([*map(jnp.asarray, read)])
        return made[self]


def columns(phase: Phase, makers: dict[Any, Equation]) -> dict[Value, Column]:
    """The columns of a phase, by what the phase calls them. It reads them from now on.

    Args:
        makers: the equation that makes each value.
    """
    found, known = dict[Value, Column](), dict[tuple[Atom, ...], Column]()
    for leaves in phase.groups():
        for scalars in zip(*(leaf.scalars for leaf in leaves), strict=True) if len(leaves) >= LONG else ():
            column = _column(scalars, makers, known)
            if column.equation is not None:
                name = Value(scalars[0].aval.update(shape=(len(scalars),)))
                found[name] = column
                phase.read_column(name, scalars)
    return found


def known_before(found: Iterable[Column], phases: Iterable[Phase]) -> list[Value]:
    """The scalars that columns are computed from. Lets phases return totals as arrays where a column reads them so."""
    phase_of: dict[Any, Phase] = {x: phase for phase in phases for x in phase.totals}
    waiting, seen = [*found], dict[Column, None]()
    while waiting:
        column = waiting.pop()
        if column not in seen:
            seen[column] = None
            waiting += column.inputs
    ends = [column for column in seen if column.equation is None]
    for column in ends:
        (phase, *others) = {phase_of.get(x) for x in column.scalars}
        if phase is not None and not others and not column.is_shared:
            phase.collect(column.scalars)
    return [x for column in ends for x in column.scalars if isinstance(x, Value)]


def computed(found: dict[Value, Column], known: dict[Value, Any]) -> dict[Value, Any]:
    made: dict[Column, Any] = {}
    return {name: column.run(known, made) for name, column in found.items()}


def _column(scalars: tuple[Any, ...], makers: dict[Any, Equation], known: dict[Any, Column]) -> Column:
    if scalars not in known:
        known[scalars] = Column(scalars)
        made = [makers.get(x) for x in scalars] if not known[scalars].is_shared else []
        if made and all(e is not None and _is_like(e, made[0]) for e in made):
            inputs = zip(*(e.inputs for e in made if e is not None), strict=True)
            below = tuple(_column(x, makers, known) for x in inputs)
            if not all(x.is_shared for x in below):
                known[scalars] = Column(scalars, made[0], below)
    return known[scalars]


def _is_like(e: Equation, first: Any) -> bool:
    """Whether two equations do the same to a single number each."""
    every: Sequence[Atom] = (*e.inputs, *e.outputs)
    return (
        first is not None
        and e.name == first.name
        and e.name in NAMES
        and e.params == first.params
        and all(x.shape == () for x in every)
        and [x.dtype for x in every] == [x.dtype for x in (*first.inputs, *first.outputs)]
    )
