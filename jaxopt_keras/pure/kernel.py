"""The pure face: an optimizer as three pure, jitted functions, `init`, `update` and `step`."""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.compiled import Compiled, shared
from jaxopt_keras.engine.core import Core
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.plan import Plan, plan
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.resting_slots import resting, rests, together
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.language.rule import Rule, as_scalar, fields_of
from jaxopt_keras.schedules import is_schedule


@dataclass(frozen=True, eq=False)
class Kernel:
    """An optimizer as pure functions over pytrees, wherever an `optax.GradientTransformation` goes.

    Args:
        rule: what it does to one array.
        options: what surrounds the rule: decay, clipping, averaging, accumulation (`Options`).

    Two kernels that differ only in numbers (rates, betas, decays) share one compiled program: the numbers live in
    `state.hyper`, where they can be replaced at any time. A number given as a JAX array, traced or not, is the
    program's around the kernel instead: every call takes the one that the kernel has (so `optax.inject_hyperparams`
    sets the numbers of a kernel's factory).

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel = jk.adam(learning_rate=0.1)
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> state = kernel.init(params)
    >>> for _ in range(100):
    ...     grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
    ...     params, state = kernel.step(params, state, grads)
    >>> bool(jnp.all(jnp.abs(params["w"]) < 0.2)), int(state.step)
    (True, 100)
    """

    rule: Rule | Foreign | Core
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Options):
            raise TypeError(f"`options` must be `Options`. Received: options={self.options!r}")
        rule = self.rule
        if isinstance(rule, type) or not (isinstance(rule, Rule) or hasattr(rule, "skeleton")):
            raise TypeError(f"`rule` must be an instance of a `Rule`. Received: rule={rule!r}")
        if self.core.schedule is not None and not is_schedule(self.core.schedule):
            raise TypeError(
                "`learning_rate` must be a number or a function of the step. Received: a function without arguments, "
                "which only the stateful face can call before each step."
            )
        self._check_forms()
        if self.options.sparse == "lazy" and getattr(rule, "grain", "") != "element":
            raise ValueError(
                f'`sparse="lazy"` works on single rows, and {type(rule).__name__} may need whole arrays. '
                'Received: sparse="lazy". Use `sparse="dense"`.'
            )

    def _check_forms(self) -> None:
        """Refuses forms for slots that there are not, or of which nothing is known."""
        wanted = self.options.state_dtype
        if wanted is None:
            return
        if not isinstance(self.rule, Rule):
            raise TypeError(
                f"`state_dtype` needs a `Rule`, which says what its slots are. Received: state_dtype={wanted!r} for "
                f"{type(self.rule).__name__}"
            )
        known = self.rule.slots()
        for slot, _ in wanted if isinstance(wanted, tuple) else ():
            if slot not in known:
                raise ValueError(f"`{slot}` is no slot of {type(self.rule).__name__}. It has {[*known]}")

    @classmethod
    def from_optax(cls, tx: Any, **options: Any) -> "Kernel":
        """Any optax transformation with this library's `step` and options.

        Args:
            tx: an object with `init(params)` and `update(updates, state, params)`.
            **options: of `Options`, except `weight_decay`, which needs a rate of ours.

        Raises:
            TypeError: if `tx` has not those two methods.
        """
        return cls(Foreign(tx), Options(**options))

    @property
    def core(self) -> Core:
        return Leafwise(self.rule) if isinstance(self.rule, Rule) else self.rule

    @functools.cached_property
    def program(self) -> Any:
        """What is compiled: all but the numbers."""
        program = Program(self.core.skeleton(), self.options.skeleton())
        return Offloaded(program, self.options.offload) if self.options.offload else program

    @functools.cached_property
    def compiled(self) -> Compiled:
        return shared(self.program)

    def hyper(self) -> dict[str, Any]:
        """The run-time hyperparameters by name, as fresh scalars."""
        return self.core.arrays() | self.options.arrays()

    def current(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """The run-time hyperparameters of a call: a state's `hyper`, but for those that were given as arrays."""
        return hyper | {name: self.hyper()[name] for name in self._given} if self._given else hyper

    def init(self, params: Any) -> State:
        """The state for `params`, a pytree of arrays. Of `jax.ShapeDtypeStruct`s: the state's own.

        Raises:
            TypeError: for a leaf that is neither float nor complex.
        """
        hyper = self.hyper()
        try:
            if any(isinstance(p, jax.ShapeDtypeStruct) for p in jax.tree.leaves(params)):
                return jax.eval_shape(self.compiled.init, params, hyper)
            return self.compiled.init(params, hyper)
        except TypeError as error:
            raise _explained(error, params=params) from error

    def update(self, grads: Any, state: State, params: Any = None, **extra: Any) -> tuple[Any, State]:
        """The optax protocol: amounts to add to `params`, and the next state.

        Args:
            grads: a pytree like `params`; None for a leaf that is not to move; `IndexedSlices` or `BCOO` leaves too.
            state: of `init` or the last call; not donated.
            params: may be left out where neither rule nor options read them.
            **extra: for a transformation of optax's that takes more than gradients (`value`, `grad`, `value_fn`, ...).
                A function among them is a part of the compiled program: outside `jit`, pass the same one each time.
                Otherwise accepted and ignored, as callers of `optax.GradientTransformationExtraArgs` expect.

        The updates are float32 for bfloat16 and float16 parameters, so that `optax.apply_updates` rounds once.
        """
        moving, hyper = self.moving(state), self.current(state.hyper)
        flat = moving.held is not None
        try:
            given = together(moving) if flat else moving
            updates, moved = self.compiled.update(grads, given, params, self._with(hyper, extra))
        except TypeError as error:
            raise _explained(error, grads=grads, params=params) from error
        return updates, (resting(moved) if flat else moved)._replace(hyper=hyper)

    def step(self, params: Any, state: State, grads: Any, *, donate: bool = True, **extra: Any) -> tuple[Any, State]:
        """New `params` and `state` in one fused pass. Both arguments are donated: do not use them afterwards.

        Args:
            params: a pytree of arrays.
            state: of `init` or the last call.
            grads: as in `update`.
            donate: False keeps `params` and `state` usable, at the cost of a copy.
            **extra: as in `update`, for a transformation of optax's that takes more than gradients.

        Raises:
            ValueError: if the structure or a shape does not fit. TypeError: for a leaf of a wrong kind, or a keyword
            that nobody takes.
        """
        run, moving = self.compiled.step_donating if donate else self.compiled.step, self.moving(state)
        hyper, flat = self.current(state.hyper), self._rests(moving, params)
        try:
            given = together(moving) if flat else moving
            params, moved = run(params, given, grads, self.given(hyper, extra))
        except TypeError as error:
            raise _explained(error, params=params, grads=grads) from error
        return params, (resting(moved) if flat else moved)._replace(hyper=hyper)

    def _rests(self, state: State, params: Any) -> bool:
        """Whether a step from `state` leaves the slots in a buffer."""
        own = self.options.flat_state is None and isinstance(self.rule, Rule)
        return own and rests(self.options, jax.tree.leaves(params), state)

    def averaged(self, params: Any, state: State) -> Any:
        """The parameters to evaluate: their moving average under `use_ema`, else the rule's own (ScheduleFree's x).

        Where there is neither, they are `params`. A pure function; nothing is donated.
        """
        moving = self.moving(state)
        given = moving if moving.held is None else together(moving)
        return self.compiled.averaged(params, given, self.current(state.hyper))

    def describe(self, params: Any) -> Plan:
        """What will run for `params`, arrays or `jax.ShapeDtypeStruct`s: a value that prints as a table.

        Each line is a group of arrays of the same rule, dtype and storage: how many, the bytes of their state, and the
        form of each slot, with the reason where it is not the one that `state_dtype` asked for.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> plan = jk.lion(state_dtype="int8").describe({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
        >>> for group in plan.groups:
        ...     print(group.paths, group.kind.slots, group.bytes)
        ['bias'] ('momentum float32 (fewer than 4096 elements)',) 1024
        ['kernel'] ('momentum int8 in blocks',) 16640
        """
        return plan(self.program, params, self.hyper())

    def replaced(self, state: State, **hyper: Any) -> State:
        """`state` with other hyperparameters, without a new compilation.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel = jk.sgd(0.1)
        >>> state = kernel.replaced(kernel.init(jnp.zeros(2)), learning_rate=0.5)
        >>> float(state.hyper["learning_rate"])
        0.5

        Raises:
            ValueError: for a name that `state.hyper` has not, or a value out of its range.
        """
        self.moving(state)
        fields = fields_of(Options) | (fields_of(type(self.rule)) if isinstance(self.rule, Rule) else {})
        for name in hyper:
            if name not in state.hyper:
                raise ValueError(
                    f"`{name}` is no run-time hyperparameter here. Received: {name}={hyper[name]!r}. There are "
                    f"{sorted(state.hyper)}"
                )
            if name in self._given:
                raise ValueError(
                    f"`{name}` was given to this kernel as a JAX array, which every call takes in the place of the "
                    f"state's. Received: {name}={hyper[name]!r}. Make the kernel with a Python number."
                )
        values = {n: as_scalar(fields[n], fields[n].check(n, value)) for n, value in hyper.items()}
        return state._replace(hyper=state.hyper | values)

    @functools.cached_property
    def _given(self) -> tuple[str, ...]:
        """The names of the hyperparameters that were given as arrays."""
        numbers = self.options.traced() | (self.rule.traced() if isinstance(self.rule, Rule) else {})
        return tuple(name for name, value in numbers.items() if isinstance(value, jax.Array))

    def given(self, hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The run-time values of a step: hyperparameters, and what a transformation of optax's takes besides.

        Raises:
            TypeError: for a keyword that nobody takes.
        """
        if extra and not isinstance(self.rule, Foreign):
            raise TypeError(f"`step` takes `params`, `state`, `grads` and `donate`. Received: {sorted(extra)} besides")
        return self._with(hyper, extra)

    def _with(self, hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return hyper | self.rule.extra(extra) if extra and isinstance(self.rule, Foreign) else hyper

    @functools.cached_property
    def _needs(self) -> frozenset[str]:
        return frozenset(self.hyper())

    def moving(self, state: Any) -> State:
        """What a step moves of `state`.

        Raises:
            TypeError: if it is no state. ValueError: if it is one of another kind of kernel.
        """
        if not isinstance(state, State):
            raise TypeError(
                "`state` must be what `init` or the last call returned. Received: a value of type "
                f"{type(state).__name__}"
            )
        if not self._needs <= state.hyper.keys():
            raise ValueError(
                f"`state` must come from this kernel's `init`, with the hyperparameters {sorted(self._needs)}. "
                f"Received: a state with {sorted(state.hyper)}"
            )
        return state._replace(hyper={})

    def __reduce__(self) -> Any:
        return Kernel, (self.rule, self.options)


def _explained(error: TypeError, **trees: Any) -> TypeError:
    """An error that names the first leaf that is no array; `error` itself if all are."""
    arrays = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, int, float, complex)
    for name, tree in trees.items():
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, arrays):
                return TypeError(f"`{name}` must be a pytree of arrays. Received: {leaf!r} at `{path_of(key)}`")
    return error


def refuse_flat(kernel: Kernel, by: str) -> None:
    """Raises a ValueError for a kernel with `flat_state`, whose slots are no tree like the parameters."""
    if kernel.options.flat_state:
        raise ValueError(
            f"`{by}` needs slots that mirror the parameters. Received: a kernel with flat_state=True. Leave it out."
        )
