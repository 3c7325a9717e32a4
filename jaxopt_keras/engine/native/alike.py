"""Equal computations on other arrays: the first is analysed, and the others get its loops.

Most arrays of a model have the shapes of others, and one rule updates them all.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from jaxopt_keras.engine.native.ir import Constant, Equation, Value
from jaxopt_keras.engine.native.loop import Leaf


def form(
    equations: Sequence[Equation], outputs: Sequence[Value], replaced: Sequence[Value | None], besides: Hashable
) -> tuple[Any, list[Value]]:
    """The computation of equations without its values, hashable; and the values, in an order of that form.

    Args:
        outputs: what others read.
        replaced: the array whose memory each of them takes.
        besides: what else must be equal.
    """
    numbers: dict[Value, int] = {}
    found: list[Any] = [besides]
    for e in equations:
        found.append(e.kind)
        for x in e.inputs:
            if isinstance(x, Constant):
                found.append(x)
            else:
                if x not in numbers:
                    numbers[x] = len(numbers)
                    found.append((x.shape, x.dtype))
                found.append(numbers[x])
        for x in e.outputs:
            numbers[x] = len(numbers)
            found.append((x.shape, x.dtype))
    return (*found, *(numbers[x] for x in outputs), *(x and numbers.get(x) for x in replaced)), [*numbers]


def on(leaf: Leaf, names: dict[Any, Any]) -> Leaf:
    """The loop of a leaf on other values.

    Args:
        names: the new value of each old one, and the new equation of each old one.
    """
    operands = (leaf.inputs, leaf.scalars, leaf.outputs, leaf.totals)
    inputs, scalars, outputs, totals = (tuple(names[x] for x in some) for some in operands)
    equations, written = [names[e] for e in leaf.equations], tuple((names[x], names[y]) for x, y in leaf.written)
    new = replace(leaf, equations=equations, inputs=inputs, scalars=scalars, outputs=outputs, totals=totals)
    return replace(new, written=written)
