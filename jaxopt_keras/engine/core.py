"""The protocols of the engine: the static layout of a tree, the clock, what a core and what a program must offer."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.packing.trees import Packed

Slots = dict[str, Any]  # of one parameter: slot name -> array


class Leaf(NamedTuple):
    """The static facts on one parameter."""

    path: str  # "dense/kernel"
    decays: bool  # False: excluded from weight decay


class Layout(NamedTuple):
    """The static facts on a tree of parameters."""

    treedef: Any
    leaves: tuple[Leaf, ...]

    @classmethod
    def read(cls, params: Any, options: Options, *, of_gradients: bool = False) -> tuple["Layout", list[Any]]:
        """The layout of `params`, and its arrays in a list.

        `of_gradients`: `params` are gradients, whose None stands for a parameter, or for None among the parameters.

        Raises:
            TypeError: for a leaf that is not a float or complex array.
        """
        is_leaf = (lambda x: x is None) if of_gradients else None
        options = options.for_params(params)
        keyed, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
        parts = params.parts if isinstance(params, Packed) else ()  # which all decay, or all do not
        leaves = []
        for key, p in keyed:
            path = path_of(key)
            if p is None:
                leaves.append(Leaf(path, False))
                continue
            dtype = getattr(p, "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(
                    f"Every parameter must be an array of floats or complex numbers. Received: `{path or 'params'}` of "
                    f"dtype {dtype}. Take such leaves out, or put None in their place: of an Equinox module, "
                    "`eqx.filter(model, eqx.is_inexact_array)`."
                )
            leaves.append(Leaf(path, options.decays(parts[0].path, parts[0]) if parts else options.decays(path, p)))
        return cls(treedef, tuple(leaves)), [p for _, p in keyed]

    def flatten(self, tree: Any, name: str) -> list[Any]:
        """The subtrees of `tree` where the parameters have their leaves; None stays None.

        Raises:
            ValueError: if `tree` has another structure.
        """
        try:
            return self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`{name}` must have the structure of the parameters it goes with. Received: {name} of "
                f"{jax.tree.structure(tree)} for parameters of {self.treedef}"
            ) from error

    def unflatten(self, flat: list[Any]) -> Any:
        return jax.tree.unflatten(self.treedef, flat)

    def by_leaf(self, slots: dict[str, Any]) -> list[Slots]:
        """The slots of each parameter by name, from a state's trees; without those that the parameter lacks."""
        columns = {name: self.flatten(tree, f"state.slots[{name!r}]") for name, tree in slots.items()}
        return [
            {name: column[i] for name, column in columns.items() if not is_absent(column[i])}
            for i in range(len(self.leaves))
        ]

    def updated(self, trees: dict[str, Any], leaves: list[Slots]) -> dict[str, Any]:
        """`trees` with the slots of each parameter; what a parameter lacks stays as it is."""
        old = {name: self.flatten(tree, "state") for name, tree in trees.items()}
        return {
            name: self.unflatten([s.get(name, x) for s, x in zip(leaves, column, strict=True)])
            for name, column in old.items()
        }

    def by_slot(self, names: Iterable[str], leaves: list[Slots]) -> dict[str, Any]:
        """The trees of a state, one for each of `names`, from the slots of each parameter."""
        return {name: self.unflatten([s.get(name, optax.MaskedNode()) for s in leaves]) for name in names}


def is_absent(slot: Any) -> bool:
    """Whether this stands for a slot that the parameter lacks, or belongs to a None among the parameters."""
    return slot is None or isinstance(slot, optax.MaskedNode)


class Now(NamedTuple):
    """The moment of one update."""

    t: Array  # a float, 1 at the first update
    lr: Any  # None for a core that has no learning rate of its own
    weight_decay: Any  # None: off
    hyper: dict[str, Any]

    def cast(self, dtype: Any) -> "Now":
        """The same in the dtype of one parameter's arithmetic (an array or a `Complemented` each)."""
        return jax.tree.map(lambda x: x.astype(dtype), self)


class Core(Protocol):
    """Runs one update over a list of parameters. In a skeleton the numbers are left out: they arrive in `Now.hyper`."""

    whole: ClassVar[bool]  # every update needs all parameters, also those without gradient
    takes_rows: ClassVar[bool]  # a sparse gradient may reach it as `Rows`

    def arrays(self) -> dict[str, Any]:
        """The initial run-time hyperparameters."""
        ...

    def skeleton(self) -> "Core":
        """The static rest."""
        ...

    def replaced(self, **numbers: Any) -> "Core":
        """The core with other hyperparameters."""
        ...

    @property
    def schedule(self) -> Any:
        """The learning rate as a function of the step; None where it is a number in `Now.hyper`."""
        ...

    @property
    def elementwise(self) -> bool:
        """Whether every element is updated by itself, in the same way for every parameter."""
        ...

    def slot_names(self) -> tuple[str, ...]:
        """The slots that a parameter may have, in order, whatever the parameters are."""
        ...

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        """The slots of every parameter, and the scalars kept once."""
        ...

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        """What is known of the slots of a parameter, for storage."""
        ...

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        """The coefficient of the decay that the pipeline applies before the update, or None."""
        ...

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        """The amounts to add to the parameters (None where there is no gradient), the new slots, the new scalars."""
        ...

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        """The parameter to evaluate."""
        ...


class Program(Protocol):
    """An optimizer as pure functions of trees of arrays. `hyper` is what `hyper()` returns, or the same with other
    numbers; nothing else about a program changes from step to step, so that equal skeletons share compiled code.
    """

    @property
    def options(self) -> Options: ...

    @property
    def children(self) -> tuple["Program", ...]:
        """The programs that this one runs."""
        ...

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        """The state of fresh parameters, without injected hyperparameters."""
        ...

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """The parameters and the state after one call. `reduce`: sum gradients over `axis_name`, if there is one."""
        ...

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """The amounts to add to the parameters, in the dtype of the arithmetic, and the state after one call."""
        ...

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        """The parameters to evaluate, in their own dtypes."""
        ...

    def summed(self, params: Any, grads: Any) -> Any:
        """`grads` summed over `axis_name`, if there is one: for decisions on all of them before a step."""
        ...

    def hyper(self) -> dict[str, Any]:
        """The hyperparameters by name as scalar arrays; of groups, a dict for each group."""
        ...

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """Those of `hyper` that `inject_hyperparams` keeps in the state."""
        ...

    def skeleton(self) -> Self:
        """The program without its numbers."""
        ...

    def replaced(self, **numbers: Any) -> Self:
        """The program with other hyperparameters.

        Raises:
            ValueError: for a name that it does not have, or a value out of its range.
        """
        ...

    def describe(self, params: Any) -> Any:
        """The plan of a step over `params` (`engine.plan.Plan`)."""
        ...

    def loss_scale(self, state: State) -> Any:
        """The factor of the loss of which it expects the gradients; None: 1."""
        ...
