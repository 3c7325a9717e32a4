"""The base classes `Core` and `Program`, the static layout of a tree, and the time of an update."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.dtypes import extended, float0

from jaxopt_keras.engine.state import State, is_absent
from jaxopt_keras.engine.unused_patterns import Unused
from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.language.rule import RATE, Slot
from jaxopt_keras.packing.trees import Packed

Slots = dict[str, Any]  # of one parameter: slot name -> array


class Leaf(NamedTuple):
    """The static properties of one parameter."""

    path: str  # "dense/kernel"
    decays: bool  # False: excluded from weight decay


class Layout(NamedTuple):
    """The static properties of a tree of parameters.

    Leaves that are neither floats nor complex numbers (counters, keys, flags) are frozen: they have no slots and are
    never updated. A list of parameters, gradients or slots has no elements for them.
    """

    treedef: Any
    leaves: tuple[Leaf, ...]
    frozen: dict[int, tuple[str, Any]]  # number of the leaf in the tree -> its path and the leaf itself

    @classmethod
    def read(cls, params: Any, options: Options, grads: Any = None) -> tuple["Layout", list[Any]]:
        """Return the layout of `params`, and a list of its arrays without the frozen ones.

        Args:
            grads: the gradients, whose layout is returned if `params` is None. Each None in them is a leaf, and every
                parameter is None.

        Raises:
            TypeError: for a leaf that is not an array.
        """
        of_gradients = params is None and grads is not None
        tree, is_leaf = (grads, lambda x: x is None) if of_gradients else (params, None)
        options = options.for_params(tree)
        found, treedef = leaves_by_path(tree, is_leaf), jax.tree.structure(tree, is_leaf=is_leaf)
        parts = [part for part in tree.parts if part.buffer] if isinstance(tree, Packed) else ()  # all decay, or none
        leaves, stored, frozen = [], [], dict[int, tuple[str, Any]]()
        for i, (path, p) in enumerate(found):
            if p is None:
                leaves.append(Leaf(path, False))
            elif is_inexact(p):
                leaves.append(Leaf(path, options.decays(parts[0].path, parts[0]) if parts else options.decays(path, p)))
            elif hasattr(p, "dtype"):
                frozen[i] = path, p
                continue
            else:
                raise TypeError(f"Every parameter must be an array. Received: {p!r} at `{path or 'params'}`")
            stored.append(None if of_gradients else p)
        return cls(treedef, tuple(leaves), frozen), stored

    def flatten(self, tree: Any, name: str) -> list[Any]:
        """Return the subtrees of `tree` at the leaves of the parameters, without frozen ones; None stays None.

        Raises:
            ValueError: if `tree` has another structure.
        """
        return [x for i, x in enumerate(self._subtrees(tree, name)) if i not in self.frozen]

    def _subtrees(self, tree: Any, name: str) -> list[Any]:
        try:
            return self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`{name}` must have the structure of the parameters. Received: {name} of "
                f"{jax.tree.structure(tree)} for parameters of {self.treedef}"
            ) from error

    def unflatten(self, flat: list[Any], frozen: list[Any] | None = None) -> Any:
        """Return the tree of `flat`, with `frozen` in the places of the frozen leaves; None: marks of absence."""
        inside = iter(flat)
        others = iter([optax.MaskedNode()] * len(self.frozen) if frozen is None else frozen)
        places = range(self.treedef.num_leaves)
        return jax.tree.unflatten(self.treedef, [next(others if i in self.frozen else inside) for i in places])

    def frozen_leaves(self) -> list[Any]:
        return [p for _, p in self.frozen.values()]

    def frozen_gradients(self, grads: Any) -> list[Any]:
        """Return what `grads` has for the frozen leaves: None, float0, or an array that is not of floats.

        Raises:
            TypeError: for a gradient of floats.
        """
        found = [self._subtrees(grads, "grads")[i] for i in self.frozen]
        for (path, p), g in zip(self.frozen.values(), found, strict=True):
            if is_inexact(g):
                raise TypeError(
                    f"A parameter of dtype {p.dtype} is not updated. Received: a gradient of dtype {g.dtype} for "
                    f"`{path}`. Pass None or float0, or convert the parameter to floats."
                )
        return found

    def frozen_amounts(self, grads: Any) -> list[Any]:
        """Return the amounts to add to the frozen leaves: zeros, or None without gradient and for random keys."""
        can_add = [p.dtype != float0 and not jnp.issubdtype(p.dtype, extended) for p in self.frozen_leaves()]
        return [
            jnp.zeros_like(p) if is_number and hasattr(g, "dtype") else None
            for g, p, is_number in zip(self.frozen_gradients(grads), self.frozen_leaves(), can_add, strict=True)
        ]

    def by_leaf(self, slots: dict[str, Any]) -> list[Slots]:
        """Convert a state's trees to the slots of each parameter by name, without those that the parameter lacks."""
        columns = {name: self.flatten(tree, f"state.slots[{name!r}]") for name, tree in slots.items()}
        return [
            {name: column[i] for name, column in columns.items() if not is_absent(column[i])}
            for i in range(len(self.leaves))
        ]

    def updated(self, trees: dict[str, Any], leaves: list[Slots]) -> dict[str, Any]:
        """Return `trees` with new slots of each parameter; entries for absent slots do not change."""
        old = {name: self.flatten(tree, "state") for name, tree in trees.items()}
        return {
            name: self.unflatten([s.get(name, x) for s, x in zip(leaves, column, strict=True)])
            for name, column in old.items()
        }

    def by_slot(self, names: Iterable[str], leaves: list[Slots]) -> dict[str, Any]:
        """Convert the slots of each parameter to a state's trees, one for each of `names`."""
        return {name: self.unflatten([s.get(name, optax.MaskedNode()) for s in leaves]) for name in names}


class Now(NamedTuple):
    """The time and the hyperparameters of one update."""

    t: Array  # a float, 1 at the first update
    lr: Any  # None for a core without a learning rate
    weight_decay: Any  # None: off
    hyper: dict[str, Any]
    loss: Any = None  # None: not given
    second: Any = None  # the second gradient of each parameter; or a function of points, for a core that searches
    own: Any = None  # `t` of each parameter, which counts its own updates; None: all have the common one

    @classmethod
    def at(cls, count: Array, hyper: dict[str, Any], loss: Any) -> "Now":
        """Return the update after `count` others."""
        t = count.astype(jnp.result_type(float)) + 1
        return cls(t, hyper.get(RATE), hyper.get("weight_decay"), hyper, loss)


def cast(numbers: Any, dtype: Any) -> Any:
    """Cast all numbers of a tree, each an array or a `Complemented`, to the dtype of one parameter's arithmetic."""
    return jax.tree.map(lambda x: x.astype(dtype), numbers)


class Core:
    """Runs one update over a list of parameters. A skeleton has no numbers: they are arguments, in `Now.hyper`.

    The defaults are those of a core without hyperparameters and slots of its own.
    """

    whole: ClassVar[bool] = False  # every update needs all parameters, including those without gradient
    takes_rows: ClassVar[bool] = False  # `update` accepts sparse gradients as `Rows`
    needs_loss = needs_function = searches = joint = False  # needs the loss, its function, a search, sums of all arrays
    any_slots = False  # a state may have more slots and scalars than the core keeps: those of a user's class

    @property
    def title(self) -> str:
        """The name of what updates parameters, for the plan."""
        return type(self).__name__

    def arrays(self) -> dict[str, Any]:
        """Return the run-time hyperparameters, as arrays by name."""
        return {}

    def skeleton(self) -> Self:
        """Return the core without its numbers."""
        return self

    def replaced(self, **numbers: Any) -> Self:
        """Return the core with other hyperparameters."""
        return self

    def schedules(self) -> dict[str, Any]:
        """Return the hyperparameters that are functions of the step, by name."""
        return {}

    def scheduled(self, step: Any) -> dict[str, Any]:
        """Return the values of these hyperparameters at a step, as `arrays` has those of the others."""
        return {}

    @property
    def elementwise(self) -> bool:
        """Whether each element is updated independently, in the same way for every parameter."""
        return False

    def is_elementwise(self, leaf: Leaf, p: Any) -> bool:
        """Whether each element of one parameter is updated independently."""
        return False

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Return the regular expressions that are searched for in paths, by argument."""
        return {}

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of all slots that a parameter can have, in order."""
        return ()

    def scalar_names(self, hyper: dict[str, Any]) -> Iterable[str]:
        """Return the names of the core's scalars."""
        return ()

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        """Return the slots of every parameter, and the scalars."""
        return [{} for _ in params], {}

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        """Return the declarations of the slots of a parameter, for storage and sharding."""
        return {}

    def overlooked(self, layout: Layout, params: list[Any]) -> str:
        """Say which parameters are not updated as the user may expect; "": none."""
        return ""

    def stacks(self, leaf: Leaf, p: Any) -> bool:
        """Whether a parameter is updated in one stack with others of its shape."""
        return False

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        """Return the coefficient of the decay that the pipeline applies before the update, or None."""
        return now.weight_decay

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        """Return the amounts to add to the parameters (None without gradient), the new slots and the new scalars."""
        raise NotImplementedError

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        """Return the parameter to evaluate."""
        return p


class Program:
    """An optimizer as pure functions of trees of arrays.

    The argument `hyper` is the result of `hyper()`, or the same with other numbers. Nothing else of a program changes
    from step to step, so that equal skeletons share compiled code. The defaults are those of a program without
    hyperparameters that runs no other program.
    """

    options: Any  # `Options`
    children: Any = ()  # the programs that this one runs

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        """Return the state of fresh parameters, without injected hyperparameters."""
        raise NotImplementedError

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        """Return the result of one call, and the state after it.

        Args:
            params: the parameters. Without `write` they may be None.
            reduce: sum gradients over `axis_name`, if any.
            write: the result is the new parameters; otherwise the amounts to add to them, in the dtype of the
                arithmetic.
        """
        raise NotImplementedError

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """Return the parameters and the state after one call."""
        return self.call(params, state, grads, hyper, reduce, write=True)

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """Return the amounts to add to the parameters, and the state after one call."""
        return self.call(params, state, grads, hyper, reduce, write=False)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        """Return the parameters to evaluate, in their own dtypes."""
        return params

    def summed(self, params: Any, grads: Any, hyper: Any, reduce: bool = True) -> tuple[Any, Any]:
        """Sum gradients over `axis_name`, if any: for decisions on all of them before a step.

        Returns:
            The gradients, and the run-time values with which to call the program on them, without `reduce`.
        """
        return grads, hyper

    def parts(self, params: Any) -> list[tuple[Core, Layout, list[Any]]]:
        """Return each core that is run, with the layout and the arrays of its parameters."""
        return [part for child in self.children for part in child.parts(params)]

    def unused(self, paths: Sequence[str]) -> list[Unused]:
        """Return the patterns that are found in none of the parameters' paths."""
        return [x for child in self.children for x in child.unused(paths)]

    def hyper(self) -> Any:
        """Return the hyperparameters by name as scalar arrays; of groups, a dict for each group."""
        return {}

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """Return the part of `hyper` that `inject_hyperparams` keeps in the state."""
        return {}

    def schedules(self, injected: bool = True) -> dict[str, Any]:
        """Return the (injected) hyperparameters that are functions of the step; of groups, a dict for each group."""
        return {}

    def offered(self, hyper: Any, given: dict[str, Any]) -> Any:
        """Return `hyper` with what a call was given (`engine.given`), for each program that takes it."""
        return hyper

    def at(self, hyper: Any, step: Any) -> Any:
        """Return `hyper` with the values at a step of those hyperparameters that are functions of it."""
        return hyper

    def skeleton(self) -> Self:
        """Return the program without its numbers."""
        return self

    def replaced(self, **numbers: Any) -> Self:
        """Return the program with other hyperparameters.

        Raises:
            ValueError: for an unknown name, or a value out of its range.
        """
        raise NotImplementedError

    def describe(self, params: Any, state: Any = None) -> Any:
        """Return the plan of a step over `params` (`engine.plan.Plan`), with this state or that of `init`."""
        raise NotImplementedError

    def loss_scale(self, state: State) -> Any:
        """Return the factor of the loss whose gradients the program expects; None: 1."""
        return None
