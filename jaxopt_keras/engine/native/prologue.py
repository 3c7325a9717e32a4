"""Pass: a phase computes the scalars of its loops from numbers that are known before it.

A rate from the count of updates, for example, or the factor of a clip from the norm of each array. Kernels for GPUs
compute them in their prologue, so that no launch of XLA's comes before. Elsewhere XLA computes them, for all arrays
with equal loops at once: one by one it would compile 148 results of one kernel.

The last phase also computes the scalars of the new state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.ir import Constant, Equation, Trace, Value
from jaxopt_keras.engine.native.known import Known
from jaxopt_keras.engine.native.loop import ARRAY, ELEMENT, Input, Loop, Operand, Operation, Output, Ref, simplified

LONG = 16  # arrays, whose scalars XLA computes together; for fewer it gains nothing
MOST = 128  # numbers in an expression: each one that a kernel reads is a parameter, of which it has few


@dataclass(frozen=True, eq=False)
class Column:
    """A scalar that each of some arrays has: what one of its equations does, on the columns of its inputs.

    Attributes:
        scalars: values or constants: one for each array, or one for all of them.
        equation: None: the scalars are known before the phase.
        name: what the phase calls its numbers, if it is an end: the scalar, or the array of them.
        numbers: it and the columns that it is computed from.
    """

    scalars: tuple[Any, ...]
    equation: Equation | None = None
    inputs: tuple["Column", ...] = ()
    name: Any = field(init=False)
    numbers: frozenset["Column"] = field(init=False)

    def __post_init__(self) -> None:
        name = self.scalars[0]  # of any dtype: a state may have random keys
        if not self.is_shared:
            name = Value(jax.ShapeDtypeStruct((len(self.scalars),), jnp.dtype(name.dtype)))
        object.__setattr__(self, "name", name)
        own = frozenset() if self.is_literal else frozenset([self])
        object.__setattr__(self, "numbers", own.union(*(x.numbers for x in self.inputs)))

    @property
    def is_shared(self) -> bool:
        return len(self.scalars) == 1

    @property
    def is_array(self) -> bool:
        """Whether its numbers are computed as one array."""
        return len(self.scalars) >= LONG

    @property
    def is_literal(self) -> bool:
        return self.equation is None and isinstance(self.name, Constant)

    def run(self, known: dict[Any, Any], made: dict["Column", Any]) -> Any:
        """The numbers: one, an array, or a list of few. Adds those of all columns to `made`."""
        if self not in made:
            made[self] = self._known(known) if self.equation is None else self._run(self.equation, known, made)
        return made[self]

    def _known(self, known: dict[Any, Any]) -> Any:
        numbers = self.name.value if self.is_literal else known[self.name]
        if self.is_shared or self.is_array:
            return numbers
        return [numbers[k].reshape(x.shape) for k, x in enumerate(self.scalars)]

    def _run(self, equation: Equation, known: dict[Any, Any], made: dict["Column", Any]) -> Any:
        inputs = [x.run(known, made) for x in self.inputs]
        run = lambda *some: equation.run([*some])[0]
        if self.is_shared:
            return run(*inputs)
        if self.is_array:
            return jax.vmap(run, tuple(None if x.is_shared else 0 for x in self.inputs))(*inputs)
        rows = (repeat(x) if column.is_shared else x for x, column in zip(inputs, self.inputs, strict=True))
        return [run(*row) for row in zip(*rows, strict=False)]  # `repeat` has no end


class Prologue:
    """Columns of the same arrays, computed together.

    Attributes:
        ends: the columns that it reads.
        loop: it as a loop over the arrays, whose scalars are the ends that the arrays share.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        operands: dict[Column, Operand] = {}
        self.ends: list[Column] = []
        operations: list[Operation] = []

        def operand(x: Column) -> Operand:
            if x not in operands:
                operands[x] = made(x)
            return operands[x]

        def made(x: Column) -> Operand:
            if x.is_literal:
                return x.name
            if x.equation is None:
                self.ends.append(x)
                return Ref("s" if x.is_shared else "x", sum(y.is_shared == x.is_shared for y in self.ends) - 1)
            name, inputs = simplified(x.equation, tuple(map(operand, x.inputs)))
            operations.append(Operation(name, inputs, x.scalars[0].dtype, ELEMENT, 0))
            return Ref("v", len(operations) - 1)

        outputs = tuple(Output(operand(x), x.scalars[0].dtype, ELEMENT) for x in columns)
        self.ends.sort(key=lambda x: x.is_shared)
        inputs, scalars = (
            tuple(Input(x.scalars[0].dtype, scope) for x in self.ends if x.is_shared == shared)
            for shared, scope in ((False, ELEMENT), (True, ARRAY))
        )
        self.loop = Loop(None, inputs, scalars, tuple(operations), outputs, ())

    @property
    def values(self) -> list[Value]:
        """The scalars, if the columns have one each."""
        return [x.scalars[0] for x in self.columns]

    def run(self, known: Known, made: dict[Column, Any]) -> None:
        """Adds the numbers of each scalar to `known`."""
        for x in self.columns:
            numbers = x.run(known, made)
            if x.is_array:
                known.learn([x.scalars], [numbers])
            else:
                known.learn(x.scalars, [numbers] if x.is_shared else numbers)


class Element(NamedTuple):
    """One number of a short array that is computed element by element.

    Number k of the array depends on numbers k of others.
    """

    array: Any  # a value
    place: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> str:
        return self.array.dtype


class Columns:
    """The columns of a trace.

    Args:
        makers: the equation that makes each value.
        kept: scalars that XLA computes in any case.
    """

    def __init__(self, trace: Trace, makers: dict[Any, Equation], kept: Iterable[Value]) -> None:
        self._constants = trace.constants
        self._makers = makers
        self._found: dict[tuple[Any, ...], Any] = {}  # columns, and None for elements without one
        self._kept = {*kept}

    def of(self, scalars: tuple[Any, ...]) -> Column:
        """The column of scalars, one for each array."""
        waiting = [(key := shared(scalars))]
        plans: dict[Any, tuple[Equation | None, list[Any]]] = {}
        while waiting:  # no recursion: a schedule can have thousands of equations
            some = waiting.pop()
            if some in self._found:
                continue
            if some not in plans:
                plans[some] = self._plan(some)
            equation, inputs = plans[some]
            if missing := [x for x in inputs if x not in self._found]:
                waiting += [some, *missing]
            else:
                self._found[some] = self._made(some, equation, tuple(self._found[x] for x in inputs))
        return self._found[key]

    def _plan(self, scalars: tuple[Any, ...]) -> tuple[Equation | None, list[tuple[Any, ...]]]:
        """The equation that makes each of some numbers, and the inputs of all; None if they are not made alike."""
        made = [self._maker(x) for x in scalars]
        first = made[0][0]
        if first is None or not _has_expression(first):
            return None, []
        if not all(e is not None and _is_like(e, first) for e, _ in made):
            return None, []
        return first, [*map(shared, zip(*(inputs for _, inputs in made), strict=True))]

    def _made(self, scalars: tuple[Any, ...], equation: Equation | None, inputs: tuple[Any, ...]) -> Column | None:
        """The column of scalars; None if some are elements that it cannot compute: XLA knows no elements."""
        if equation is not None and None not in inputs:
            column = Column(scalars, equation, inputs)
            is_one_number = len(scalars) > 1 and all(x.is_shared for x in inputs)  # computed several times
            if not is_one_number and len(column.numbers) <= MOST:
                return column
        return None if any(isinstance(x, Element) for x in scalars) else Column(scalars)

    def _maker(self, x: Any) -> tuple[Equation | None, list[Any]]:
        """The equation that makes a number, and its inputs."""
        if isinstance(x, Element):
            e = self._makers.get(x.array)
            return (e, [self._at(y, x.place) for y in e.inputs]) if e and _has_expression(e) else (None, [])
        e = self._makers.get(x)
        if e is None or x in self._kept or x.shape:
            return None, []
        if e.name == "squeeze" and (cut := self._makers.get(e.inputs[0])) is not None and cut.name == "slice":
            place, *others = cut.params["start_indices"]
            return (None, []) if others else self._maker(Element(cut.inputs[0], place))
        return e, e.inputs

    def _at(self, x: Any, place: int) -> Any:
        """The number in a place of an array, or the one of a scalar."""
        if not x.shape:
            return x
        if x in self._constants and not isinstance(self._constants[x], Tracer):
            return Constant.of(np.asarray(self._constants[x])[place])
        e = self._makers.get(x)
        if e is not None and e.name == "broadcast_in_dim" and not e.inputs[0].shape:
            return e.inputs[0]
        return Element(x, place)


def shared(scalars: tuple[Any, ...]) -> tuple[Any, ...]:
    """One for all arrays if they are equal."""
    return scalars[:1] if all(x is scalars[0] or x == scalars[0] for x in scalars) else scalars


def stacked(ends: Iterable[Column], known: dict[Any, Any]) -> dict[Value, Any]:
    """The arrays of the ends that are arrays."""

    def array(x: Column) -> Any:
        if x.scalars in known:  # a phase has returned them
            return known[x.scalars]
        if all(isinstance(y, Constant) for y in x.scalars):
            return np.stack([y.value.reshape(()) for y in x.scalars])
        numbers = [jnp.asarray(y.value if isinstance(y, Constant) else known[y]) for y in x.scalars]
        return jnp.stack([y.reshape(()) for y in numbers])

    return {x.name: array(x) for x in ends if not x.is_shared}


def _is_like(e: Equation, first: Equation) -> bool:
    """Whether two equations do the same, to numbers of the same types."""
    types, of_first = ([(x.shape, x.dtype) for x in (*y.inputs, *y.outputs)] for y in (e, first))
    return e.name == first.name and e.params == first.params and types == of_first


def _has_expression(e: Equation) -> bool:
    """Whether it makes each number from one of each input, and kernels have an expression for it."""
    if not e.inputs or len(e.outputs) != 1 or e.effects:
        return False
    if any(x.shape not in ((), e.outputs[0].shape) for x in e.inputs):
        return False
    name, inputs = simplified(e, tuple(x if isinstance(x, Constant) else Ref("s", 0) for x in e.inputs))
    try:
        c.expression(Operation(name, inputs, e.outputs[0].dtype, ELEMENT, 0), e.inputs[0].dtype, ["0"] * len(inputs))
    except c.Unsupported:
        return False
    return True
