"""Pass: a scalar of all arrays, which a chain of equations adds up from one total of each, becomes a result of a phase.

The norm of a tree is such a sum. A backend that has the totals of a phase in one array reduces that array. From a chain
XLA for GPUs would compile a kernel that slices the array 148 times, for seconds.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.engine.native.ir import Constant, Equation, Value
from jaxopt_keras.engine.native.phase import Joint, Phase

LEAST = 2  # totals
NAMES = ("add", "or", "and", "max", "min")


@dataclass(frozen=True, eq=False)
class Chain:
    """Equations, each of which combines one scalar with the result of the one before, and what they combine."""

    equations: tuple[Equation, ...]
    inputs: tuple[Any, ...]  # values or constants

    @property
    def last(self) -> Equation:
        return self.equations[-1]

    def run(self, known: dict[Value, Any]) -> Any:
        first, *rest = [jnp.asarray(x.value) if isinstance(x, Constant) else known[x] for x in self.inputs]
        return functools.reduce(lambda x, y: self.last.run([x, y])[0], rest, first)


def joined(
    equations: Iterable[Equation], users: dict[Any, list[Equation | None]], phases: Sequence[Phase]
) -> dict[Equation, Chain]:
    """The long chains among equations, by each of their equations. Adds their totals to the joints of their phase.

    Args:
        users: what reads each value; None stands for the results of the trace.
    """
    phase_of: dict[Any, Phase] = {x: phase for phase in phases for x in phase.totals}
    found: dict[Equation, Chain] = {}
    for chain in _chains(equations, users):
        for phase in dict.fromkeys(phase_of[x] for x in chain.inputs if x in phase_of):
            totals = tuple(x for x in chain.inputs if phase_of.get(x) is phase)
            if LEAST <= len(totals) == len({*totals}):
                joint = Joint(chain.last, totals, Value(chain.last.outputs[0].aval))
                phase.add(joint)
                chain = Chain(chain.equations, (joint.value, *(x for x in chain.inputs if x not in {*totals})))
                found |= dict.fromkeys(chain.equations, chain)
    return found


def shortened(equations: Iterable[Equation], chains: dict[Equation, Chain]) -> list[Any]:
    """The equations, with each chain in the place of its last one."""
    return [chains.get(e, e) for e in equations if e not in chains or e is chains[e].last]


def _chains(equations: Iterable[Equation], users: dict[Any, list[Equation | None]]) -> list[Chain]:
    """The chains among equations on scalars."""
    found: dict[Any, list[Equation]] = {}  # by the last result
    for e in equations:
        if e.name in NAMES and all((x.shape, x.dtype) == ((), e.outputs[0].dtype) for x in e.inputs):
            first = e.inputs[0]
            before = found.get(first, [])
            goes_on = bool(before) and before[-1].name == e.name and users.get(first) == [e]
            found[e.outputs[0]] = [*(found.pop(first) if goes_on else []), e]  # max(sum, 1) leaves the sum as it is
    chains = [tuple(some) for some in found.values() if len(some) >= LEAST - 1]
    return [Chain(some, (some[0].inputs[0], *(e.inputs[1] for e in some))) for some in chains]
