"""The stateful face: a Keras-style optimizer that owns its state and updates variables in place.

It adds nothing to the arithmetic. Variables become a dict of arrays by path, one compiled and donated call of the pure
pipeline makes the step, and the results are written back.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.compiled import Compiled
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.slot_packing import LOOSE, should_pack_slots
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options, refuse_unknown
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.packing.slots import pack_slots_eagerly
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.stateful.configs import Configs
from jaxopt_keras.stateful.custom.api import HOOKS
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.losses import Losses
from jaxopt_keras.stateful.registry import Registry
from jaxopt_keras.stateful.settings import OPTIONS
from jaxopt_keras.stateful.state_views import Place, View, masked, updated, view
from jaxopt_keras.stateful.validation import checked, numbers, of_length, pairs, refuse_traced
from jaxopt_keras.stateful.variable import as_array, several, value_of
from jaxopt_keras.stateful.variable_kinds import Handle
from jaxopt_keras.stateful.weight_lists import Weights


class Call(NamedTuple):
    """A step that is ready to run: what is compiled, and its arguments."""

    program: Any
    compiled: Compiled
    params: Any
    moving: Any  # what moves of the state
    grads: Any
    hyper: Any
    inner: Any = None  # of a wrapper: its inner optimizers' calls, by their numbers


class Optimizer(Registry, Configs, Weights, Losses):
    """A Keras-style optimizer. The named classes (`Adam`, `SGD`, ...) are made from rules; see `optimizers`.

    To write one's own there are three ways, all of which run compiled and inside the same pipeline (clipping, decay,
    averaging, accumulation):

    - a `Rule`, and `Optimizer.from_rule(MyRule(...))`;
    - a subclass with `build(variables)` and `update_step(gradient, variable, learning_rate)`, as in Keras 3;
    - a subclass with `_create_slots(var_list)` and `_resource_apply_dense(grad, var)`, as in TF 2, which passes its
      name first: `super().__init__(name, **kwargs)`.

    Args:
        learning_rate: a number, a schedule of the step, or a function without arguments, called before each step.
        Others: see `Options`.

    >>> import jaxopt_keras as jk
    >>> w = jk.Variable([1.0, 2.0], name="w")
    >>> class Plain(jk.Optimizer):
    ...     def update_step(self, gradient, variable, learning_rate):
    ...         variable.assign_sub(learning_rate * gradient)
    >>> int(Plain(learning_rate=0.5).apply_gradients([([1.0, 1.0], w)]))
    1
    >>> w.numpy().tolist()
    [0.5, 1.5]
    """

    name: str
    built: bool

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: Any = None,
        clipnorm: Any = None,
        clipvalue: Any = None,
        global_clipnorm: Any = None,
        use_ema: bool = False,
        ema_momentum: Any = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: Any = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        options = dict(
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        if isinstance(learning_rate, str):  # TF 2: the name came first
            learning_rate, options["name"] = self._tf2_rate(kwargs), learning_rate
        options |= self._extras(kwargs)
        self._start(Hooks(self), Options(**options), learning_rate)

    @classmethod
    def from_rule(cls, rule: Rule, **options: Any) -> "Optimizer":
        """An optimizer that runs `rule`, a `Rule` instance, with the given `Options`."""
        refuse_unknown("Optimizer.from_rule", options, OPTIONS)
        if not isinstance(rule, Rule):
            raise TypeError(f"`rule` must be an instance of a `Rule`. Received: rule={rule!r}")
        return Optimizer.__new__(Optimizer)._start(rule, Options(**options), rule.learning_rate)

    @classmethod
    def from_optax(cls, tx: Any, **options: Any) -> "Optimizer":
        """An optimizer that runs an optax transformation, which keeps its own learning rate."""
        refuse_unknown("Optimizer.from_optax", options, OPTIONS)
        return Optimizer.__new__(Optimizer)._start(Foreign(tx), Options(**options), None)

    def _start(self, rule: Any, options: Options, learning_rate: Any) -> Self:
        hook = next((h for h in HOOKS if hasattr(type(self), h)), None)
        if hook and not isinstance(rule, Hooks):
            raise TypeError(
                f"`{hook}` of {type(self).__name__} would never run: {type(rule).__name__} has its own update. Derive "
                "the class from `jaxopt_keras.Optimizer`."
            )
        rule, options = rule.plain() if isinstance(rule, Rule) else rule, options.plain()
        self._begin(options, type(rule).__name__ if type(self) is Optimizer else type(self).__name__, _rule=rule)
        if learning_rate is not None:
            self._take_rate(learning_rate)
        kernel = self._kernel()
        hyper = kernel.hyper()
        # A foreign state is of all variables at once, and comes with them.
        foreign = isinstance(rule, Foreign)
        fresh = State(jnp.zeros((), jnp.int32), {}, {}, {}) if foreign else kernel.program.init({}, hyper)
        self._set_state(fresh._replace(hyperparams=hyper))
        return self

    @property
    def state(self) -> State:
        """A copy of the state: the next step consumes what is inside."""
        return jax.tree.map(jnp.copy, self._state)

    @state.setter
    def state(self, state: State) -> None:
        if jax.tree.map(_aval, state) != jax.tree.map(_aval, self._state):
            raise ValueError(
                "`state` must be a state of this optimizer, of the same slots, shapes and dtypes. Received: "
                f"{str(jax.tree.map(_aval, state))[:300]}"
            )
        self._set_state(jax.tree.map(jnp.copy, state))

    # --- one step ---------------------------------------------------------------------------------------------------

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        *,
        experimental_aggregate_gradients: bool = True,
    ) -> View:
        """Updates variables by their gradients: all of them, or, where it raises, none.

        Args:
            grads_and_vars: pairs (gradient, variable); a `zip` will do. A gradient is an array of the variable's shape,
                `IndexedSlices`, a BCOO of rows, or None.
            name: accepted for TF's sake.
            skip_gradients_aggregation, experimental_aggregate_gradients: accepted. Gradients are summed over
                `axis_name` only inside a mapped function, which runs `stateless_apply`.

        Returns:
            `iterations`.

        Raises:
            TypeError: if they are no pairs, or something is no variable. ValueError: if there is no gradient at all, a
            shape does not fit, or a variable occurs twice.
        """
        grads, variables = pairs(grads_and_vars)
        if grads:
            self._apply(grads, variables)
        return self.iterations

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> View:
        """As `apply_gradients`, with two lists; without the second, for all variables in the order of `build`."""
        grads = list(several("grads", grads))
        if trainable_variables is None:
            if not self._handles:
                raise ValueError(
                    "`apply(grads)` without variables needs a built optimizer. Call `build(variables)` first, or pass "
                    "the variables."
                )
            trainable_variables = [self._handles[path].variable for path in self._paths if path in self._handles]
        variables = list(several("trainable_variables", trainable_variables))
        if len(grads) != len(variables):
            raise ValueError(
                f"`grads` must hold one gradient for each variable. Received: {len(grads)} gradients for "
                f"{len(variables)} variables"
            )
        if grads:
            self._apply(grads, variables)
        return self.iterations

    def _apply(self, grads: list[Any], variables: list[Any]) -> None:
        if any(id(v) not in self._keys for v in variables):
            grads, variables = self._taken_apart(grads, variables)
        handles = [self._handle(v) for v in variables]
        grads = [checked(g, h) for g, h in zip(grads, handles, strict=True)]
        self._check_pairs(grads, handles)
        before = self._ensure(variables)
        try:
            self._step({self._keys[id(v)]: g for v, g in zip(variables, grads, strict=True) if g is not None})
        except BaseException:
            self._restore(before)
            raise

    def _step(self, given: dict[str, Any]) -> None:
        call = self._gathered(given)
        reduce = {} if self._options.axis_name is None else {"reduce": False}  # else one program serves both faces
        params, moved = call.compiled.step_donating(call.params, call.moving, call.grads, call.hyper, **reduce)
        refuse_traced(moved.count)
        self._landed(call, params, moved)

    def _gathered(self, given: dict[str, Any], state: Any = None, params: Any = None) -> Call:
        """The arguments of a step: with the variables' arrays and the present state, where none are given."""
        kernel, state, packs = self._kernel(), self._kept if state is None else state, False
        if params is None:
            is_packed = isinstance(state.slots, Packed)
            everything = self._options.use_ema or kernel.core.whole or is_packed
            handles = self._handles if everything else {k: self._handles[k] for k in given}
            params = {k: h.take() for k, h in handles.items()}
            whole = isinstance(self._rule, Rule) and len(params) == len(self._paths)
            arrays = list(params.values())
            packs = whole and should_pack_slots(self._options, arrays, is_packed)
            state = state if packs else self._state
        slots = state.slots if isinstance(state.slots, Packed) else masked(state.slots, params)
        moving = state._replace(slots=pack_slots_eagerly(slots, LOOSE) if packs else slots)
        grads = {k: given.get(k) for k in params}
        return Call(
            kernel.skeleton, kernel.compiled, params, moving._replace(hyperparams={}), grads, self._hyper(state)
        )

    def _moved(self, call: Call, state: Any, moved: Any) -> Any:
        """`state` after a step that moved a part of it."""
        if not isinstance(moved.slots, Packed):
            moved = moved._replace(slots=updated(state.slots, moved.slots))
        return moved._replace(hyperparams=state.hyperparams)

    def _landed(self, call: Call, params: dict[str, Any], moved: Any) -> None:
        """Takes what a step returned."""
        self._set_state(self._moved(call, self._kept, moved))
        for k, p in params.items():
            self._handles[k].write(p)

    def _check_pairs(self, grads: list[Any], handles: list[Handle]) -> None:
        ids = [id(h.variable) for h in handles]
        if len(set(ids)) != len(ids):
            twice = next(h.path for i, h in enumerate(handles) if ids[i] in ids[:i])
            raise ValueError(f"Each variable may occur once. Received: `{twice}` twice. Add its gradients up.")
        missing = [h.path for g, h in zip(grads, handles, strict=True) if g is None]
        if len(missing) == len(handles):
            raise ValueError(f"No gradients provided for any variable. Received: None for each of {missing}")
        if missing:
            warnings.warn(f"Gradients do not exist for variables {missing}: they stay as they are.", stacklevel=4)

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
        skip_gradients_aggregation: bool = False,
    ) -> tuple[list[Any], list[Any]]:
        """One step as a pure function of lists of arrays, for use inside `jit`, `shard_map` or `pmap`.

        Args:
            optimizer_variables: the values of `variables`, in that order.
            grads: one for each variable that the optimizer was built with, or None.
            trainable_variables: the values of those variables.
            skip_gradients_aggregation: True where gradients have been summed over `axis_name` already.

        Returns:
            (new trainable_variables, new optimizer_variables), as Keras returns them.

        Raises:
            ValueError: if the optimizer is not built, or a list has another length.
        """
        paths, places = self._paths, self.places()
        if not paths:
            raise ValueError("`stateless_apply` needs a built optimizer. Call `build(variables)` first.")
        if self._unbound and isinstance(self._rule, Hooks):
            raise ValueError(
                f"`stateless_apply` needs the variables {[*self._unbound]}. Call `build(variables)` first."
            )
        optimizer_variables = of_length("optimizer_variables", optimizer_variables, len(places))
        grads = of_length("grads", grads, len(paths))
        variables = of_length("trainable_variables", trainable_variables, len(paths))
        state = self._assembled(places, optimizer_variables)
        params = {path: as_array(v, "trainable_variables") for path, v in zip(paths, variables, strict=True)}
        given = {path: g if g is None else numbers(value_of(g), path) for path, g in zip(paths, grads, strict=True)}
        new, state = self._after(given, state, params, reduce=not skip_gradients_aggregation)
        return [new[path] for path in paths], self._listed(state, places)

    def _after(self, given: dict[str, Any], state: Any, params: dict[str, Any], reduce: bool) -> tuple[Any, Any]:
        """The parameters and the state after a step from those given, as a pure function. All are by path."""
        call = self._gathered(given, state, params)
        new, moved = call.compiled.step(call.params, call.moving, call.grads, call.hyper, reduce=reduce)
        return self._by_path(call, new), self._moved(call, state, moved)

    def _by_path(self, call: Call, params: Any) -> dict[str, Any]:
        """What a step returned for the variables."""
        return params

    def view(self, place: Place) -> View:
        """The array at `place` of the state, as an assignable variable (`views`)."""
        return view(self, place)

    def __repr__(self) -> str:
        rate = self._rate_source if self._rate_source is not None else self._kept.hyperparams.get("learning_rate")
        return f"<{type(self).__name__} name={self.name!r} learning_rate={rate} iterations={int(self._kept.count)}>"


def _aval(x: Any) -> Any:
    return jnp.shape(x), jnp.result_type(x)
