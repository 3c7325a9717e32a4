"""Several programs, each over its own part of one tree of parameters.

state.step       the greatest number of updates that any group has made
state.hyper      {group: its run-time hyperparameters}
state.scalars    {group: its scalars, and its `step`}, and the guard's counter
state.slots      mirrors the parameters, whatever the groups are
"""

from dataclasses import dataclass
from typing import Any

from jaxopt_keras.engine.core import Layout
from jaxopt_keras.engine.programs.multi import Joint
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.packing.trees import Packed

STEP = "step"


@dataclass(frozen=True)
class Partitioned:
    """Runs each of the programs of `joint` on those parameters whose path `router` gives the program's name."""

    names: tuple[str, ...]
    joint: Joint
    router: Any

    @property
    def options(self) -> Options:
        return self.joint.options

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        tree = Tree(self, params)
        state = self.joint.init(tree.split(params), self._listed(hyper))
        return tree.together(state)._replace(hyper=hyper)

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        tree = Tree(self, params)
        parts = tree.split(params), tree.apart(state), tree.split(grads)
        new, state = self.joint.step(*parts, self._listed(hyper), reduce)
        return tree.whole(new), tree.together(state)

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        tree = Tree(self, grads if params is None else params)
        parts = tree.split(grads), tree.apart(state), None if params is None else tree.split(params)
        deltas, state = self.joint.update(*parts, self._listed(hyper), reduce)
        return tree.whole(deltas), tree.together(state)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        tree = Tree(self, params)
        return tree.whole(self.joint.averaged(tree.split(params), tree.apart(state), self._listed(hyper)))

    def summed(self, params: Any, grads: Any) -> Any:
        tree = Tree(self, grads if params is None else params)
        return tree.whole(self.joint.summed(None if params is None else tree.split(params), tree.split(grads)))

    def _listed(self, hyper: dict[str, Any]) -> list[Any]:
        return [hyper[name] for name in self.names]


class Tree:
    """A tree of parameters, and the way from it to its groups and back.

    Raises:
        ValueError: if two parameters have the same path.
    """

    def __init__(self, program: Partitioned, params: Any) -> None:
        self.names, self.like = program.names, params if isinstance(params, Packed) else None
        self.layout, _ = Layout.read(_cut(params), Options())
        paths = [leaf.path for leaf in self.layout.leaves]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"A partition tells parameters apart by their paths. Received: `{twice}` twice")
        self.group = dict(zip(paths, program.router(tuple(paths)), strict=True))

    def split(self, tree: Any) -> list[dict[str, Any]]:
        """What each group has of a tree like the parameters, by path."""
        parts: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        for path, x in zip(self.group, self.layout.flatten(_cut(tree), "grads, params or state"), strict=True):
            parts[self.group[path]][path] = x
        return list(parts.values())

    def whole(self, parts: list[dict[str, Any]]) -> Any:
        """The other way round."""
        tree = self.mirror(parts)
        return tree if self.like is None else self.like.like(tree)

    def apart(self, state: State) -> State:
        """A state of the whole as that of a `Joint`."""
        states, rest = [], dict(state.scalars)
        for name, slots in zip(self.names, self.split(state.slots), strict=True):
            scalars = dict(rest.pop(name))
            states.append(State(scalars.pop(STEP), {}, scalars, slots))
        return State(state.step, {}, rest, states)

    def together(self, state: State) -> State:
        """The other way round."""
        scalars = {name: s.scalars | {STEP: s.step} for name, s in zip(self.names, state.slots, strict=True)}
        return State(state.step, {}, scalars | state.scalars, self.mirror([s.slots for s in state.slots]))

    def mirror(self, parts: list[dict[str, Any]]) -> Any:
        """What each group has, as a tree like that of the parameters; of packed ones as they are cut."""
        everything = {path: x for part in parts for path, x in part.items()}
        return self.layout.unflatten([everything[path] for path in self.group])


def _cut(tree: Any) -> Any:
    return tree.unpack() if isinstance(tree, Packed) else tree
