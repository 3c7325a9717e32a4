"""The stateful face: a Keras-style optimizer that owns its state and updates variables in place.

All arithmetic is the pure face's. A step gathers the variables' arrays in a dict by path, makes one compiled, donated
call of the pure pipeline, and writes the results back.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.slot_packing import form_to_pack
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.other_names import refuse_unknown
from jaxopt_keras.language.printing import arguments_of, call
from jaxopt_keras.language.rule import Rule, with_python_numbers
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.stateful.call import Call, given_of
from jaxopt_keras.stateful.custom.hooks import INNER, Hooks
from jaxopt_keras.stateful.custom.overrides import overrides
from jaxopt_keras.stateful.custom.scoped import Scoped, uncompiled
from jaxopt_keras.stateful.gradients import Losses
from jaxopt_keras.stateful.lock import LOCK, in_full, locked
from jaxopt_keras.stateful.registry import Registry
from jaxopt_keras.stateful.signals import uninterrupted
from jaxopt_keras.stateful.sources import separated
from jaxopt_keras.stateful.state_views import Place, View, masked, updated, view
from jaxopt_keras.stateful.stateless import Stateless
from jaxopt_keras.stateful.transactions import OPTIONS
from jaxopt_keras.stateful.validation import (
    check_pairs,
    checked_gradient,
    pairs,
    refuse_traced,
    without_frozen,
)
from jaxopt_keras.stateful.variable import check, check_iterable
from jaxopt_keras.stateful.windows import Windows


class Optimizer(Registry, Scoped, Losses, Stateless, Windows):
    """A Keras-style optimizer. The named classes (`Adam`, `SGD`, ...) are derived from it; see `optimizers`.

    There are three ways to write a new optimizer. All run compiled, in the same pipeline (clipping, decay, averaging,
    accumulation):

    - a `Rule`, and `Optimizer.from_rule(MyRule(...))`;
    - a subclass with `build(variables)` and `update_step(gradient, variable, learning_rate)`, as in Keras 3;
    - a subclass with `_create_slots(var_list)` and `_resource_apply_dense(grad, var)`, as in TF 2. It passes its name
      first: `super().__init__(name, **kwargs)`.

    Args:
        learning_rate: a number, a schedule of the step, or a function without arguments, called before each step.
        name: name of the optimizer; None: a name made from the class.
        Others: see `Options`.

    Raises:
        TypeError: for an unknown argument, or one of the wrong type. ValueError: for one out of its range.

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
        if isinstance(learning_rate, str):  # TF 2: the name is the first argument
            learning_rate, name = 0.001, learning_rate
        older = self._older_arguments(kwargs, tf2=overrides(type(self), "_resource_apply_dense"))
        learning_rate = older.pop("learning_rate", learning_rate)
        keras = (  # in the order of `Options`
            weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name,
        )  # fmt: skip
        self._start(Hooks(self), Options(*keras, **self._extras(kwargs)), learning_rate, **older)

    @classmethod
    def from_rule(cls, rule: Rule, **options: Any) -> "Optimizer":
        """Make an optimizer that runs `rule`, a `Rule` instance, with the given `Options`."""
        refuse_unknown("Optimizer.from_rule", options, OPTIONS)
        check(isinstance(rule, Rule), "rule", rule, "an instance of a `Rule`")
        return Optimizer.__new__(Optimizer)._start(rule, Options(**options), rule.learning_rate)

    @classmethod
    def from_optax(cls, tx: Any, **options: Any) -> "Optimizer":
        """Make an optimizer that runs an optax transformation, which contains its own learning rate."""
        refuse_unknown("Optimizer.from_optax", options, OPTIONS)
        return Optimizer.__new__(Optimizer)._start(Foreign(tx), Options(**options), None)

    def _start(self, rule: Any, options: Options, learning_rate: Any, **own: Any) -> Self:
        """Set all attributes and the initial state; `own` are attributes with other values than the usual ones."""
        rule, of_rule = separated(with_python_numbers(rule)) if isinstance(rule, Rule) else (rule, {})
        options, of_options = separated(with_python_numbers(options))
        self._init_attributes(
            options, type(rule).__name__ if type(self) is Optimizer else type(self).__name__, _rule=rule, **own
        )
        self._set_sources({n: f for n, f in (of_rule | of_options).items() if n != "learning_rate"})
        if learning_rate is not None:
            self._configure_rate(learning_rate)
        kernel = self._kernel()
        hyper = kernel.hyper()
        # The state of an optax transformation is created with the variables, for all of them at once.
        foreign = isinstance(rule, Foreign)
        fresh = State(jnp.zeros((), jnp.int32), {}, {}, {}) if foreign else kernel.program.init({}, hyper)
        self._set_state(fresh._replace(hyperparams=hyper))
        return self

    @property
    @locked
    def state(self) -> State:
        """Copy of the state, in the layout of the pure face. The next step donates the arrays of the state itself."""
        return jax.tree.map(jnp.copy, self._joined(self._state))

    @state.setter
    def state(self, state: State) -> None:
        present, received = (jax.tree.map(_shape_and_dtype, s) for s in (self._joined(self._state), state))
        if received != present:
            raise ValueError(
                "`state` must be a state of this optimizer, with the same slots, shapes and dtypes. Received: "
                f"{str(received)[:300]}"
            )
        self._set_state(self._separated(jax.tree.map(jnp.copy, state)))

    def _joined(self, state: State) -> State:
        """Return `state` in the layout of the pure face; that of a wrapper has the states of its groups as `slots`."""
        return state

    def _separated(self, state: State) -> State:
        """Return `state`, in the layout of the pure face, as this optimizer keeps it: the inverse of `_joined`."""
        return state

    def _groups(self) -> "dict[str, Optimizer]":
        """Return the plain optimizers by the names that their groups have in the state; "" without groups."""
        return {"": self}

    # --- one step ---------------------------------------------------------------------------------------------------

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        *,
        loss: Any = None,
        weight: Any = None,
        flush: Any = None,
        second: Any = None,
        experimental_aggregate_gradients: bool = True,
    ) -> View:
        """Update variables by their gradients. If it raises, no variable has changed.

        Args:
            grads_and_vars: pairs (gradient, variable), such as a `zip`. A gradient is an array of the variable's shape,
                `IndexedSlices`, a BCOO of rows, or None. A variable with `trainable=False` is not updated, whatever its
                gradient is: a warning names it if it has one.
            name: accepted for compatibility with TF; has no effect.
            loss: the loss whose gradients these are, for a rule that needs it. Default: None, none.
            weight: a number >= 0, the weight of these gradients in the mean of their window (`weighted_accumulation`).
            flush: True: the window of `gradient_accumulation_steps` ends with this call. None or False: it does not.
            second: a function that returns gradients at other values of the variables, for a rule that takes a second
                gradient (SAM): of a dict of arrays by path, a dict of gradients by path. `minimize` passes it.
            skip_gradients_aggregation, experimental_aggregate_gradients: accepted; have no effect. Gradients are summed
                over `axis_name` only by `stateless_apply`, inside a mapped function.

        Returns:
            `iterations`.

        Raises:
            TypeError: if the argument is not pairs, a variable is of no supported kind, a gradient is not numeric, or a
            weight or flush would have no effect. ValueError: if all gradients are None, a shape does not fit, or a
            variable occurs twice.
        """
        grads, variables = pairs(grads_and_vars)
        given = {"loss": loss, "weight": weight, "flush": flush, "second": second}
        given = {n: x for n, x in given.items() if x is not None}
        if overrides(type(self), "apply"):
            self.apply(grads, variables, **given)
        elif grads:
            self._apply(grads, variables, given_of(**given))
        return self.iterations

    def apply(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any] | None = None,
        *,
        loss: Any = None,
        weight: Any = None,
        flush: Any = None,
        second: Any = None,
    ) -> View:
        """Apply gradients to variables, from two lists. None: all variables, in the order of `build`.

        `loss`, `weight`, `flush` and `second` are as in `apply_gradients`.
        """
        grads = list(check_iterable("grads", grads))
        if trainable_variables is None:
            if not self._handles:
                raise ValueError(
                    "`apply(grads)` without variables needs a built optimizer. Call `build(variables)` first, or pass "
                    "the variables."
                )
            trainable_variables = [self._handles[path].variable for path in self._paths if path in self._handles]
        variables = list(check_iterable("trainable_variables", trainable_variables))
        if len(grads) != len(variables):
            raise ValueError(
                f"`grads` must hold one gradient for each variable. Received: {len(grads)} gradients for "
                f"{len(variables)} variables"
            )
        if grads:
            self._apply(grads, variables, given_of(loss=loss, weight=weight, flush=flush, second=second))
        return self.iterations

    def _apply(self, grads: list[Any], variables: list[Any], given: dict[str, Any]) -> None:
        """Validate the arguments, register new variables, and step; if that raises, undo it."""
        if self._mapped_variables:
            return self._apply_in_scope(grads, variables, given)
        with LOCK:
            if any(id(v) not in self._keys for v in variables):
                grads, variables = self._unpacked_buffers(grads, variables)
            handles = [self._handle(v) for v in variables]
            grads = [checked_gradient(g, h) for g, h in zip(grads, handles, strict=True)]
            grads = without_frozen(grads, handles, stacklevel=3)
            check_pairs(grads, handles)
            before = self._ensure(variables)
            by_path = {self._keys[id(v)]: g for v, g in zip(variables, grads, strict=True) if g is not None}
            self._step_or_undo(by_path, given, before)

    def _step_or_undo(self, grads: dict[str, Any], given: dict[str, Any], before: Any) -> None:
        with uninterrupted():  # else an exception between the donating call and the end would lose arrays
            try:
                self._step(grads, given)
            except BaseException:
                self._restore(before)
                raise

    def _step(self, grads: dict[str, Any], given: dict[str, Any]) -> None:
        """Take a step with gradients by path, and what else was given."""
        call = self._prepare_step(grads).given(given)
        # Without an axis the argument is left out, so that both faces share one program.
        reduce = {} if self._options.axis_name is None else {"reduce": False}
        kernel, kept = call.kernel, (call.params, call.state)
        step = kernel.compiled.on("step_donating", *kept) if self.jit_compile else uncompiled(kernel.program)
        params, state = step(call.params, call.state, call.grads, call.hyper, **reduce)
        refuse_traced(state.count)
        self._accept_results(call, params, state)

    def _prepare_step(self, given: dict[str, Any], state: Any = None, params: Any = None) -> Call:
        """Return the call of a step.

        Args:
            given: gradients by path.
            state: the state; None: the present one.
            params: arrays by path; None: those of the variables, to be donated.
        """
        if state is None and self._options.gradient_accumulation_steps:
            self._drop_sums_of_frozen()
        kernel, state, packs = self._kernel(), self._kept if state is None else state, False
        if params is None:
            is_packed = isinstance(state.slots, Packed)
            whole = kernel.core.whole or self._options.use_ema or self._options.gradient_accumulation_steps
            needs_all = whole or is_packed
            handles = self._handles if needs_all else {k: self._handles[k] for k in given}
            params = {k: h.take() for k, h in handles.items()}
            own = isinstance(self._rule, Rule) or (isinstance(self._rule, Hooks) and self.jit_compile)
            can_pack = own and len(params) == len(self._paths)
            form = form_to_pack(kernel.core, self._options, params, is_packed) if can_pack else None
            packs = form is not None
            del state  # nothing else keeps arrays that are packed
            state = self._own_state() if form is None else self._packed_state(params, form)
        slots = state.slots if isinstance(state.slots, Packed) else masked(state.slots, params)
        used = state._replace(slots=slots, hyperparams={})
        used = self._with_inner(used, packs) if INNER not in used.scalars else used
        grads = {k: given.get(k) for k in params}
        return Call(kernel, params, used, grads, self._hyper(state))

    def _results(self, call: Call, state: State, params: Any, result: State) -> tuple[dict[str, Any], State]:
        """Return new parameters by path, and `state` after the step: `call` returned `params` and `result`."""
        if not isinstance(result.slots, Packed):
            result = result._replace(slots=updated(state.slots, result.slots))
        used = {name: call.hyper[name] for name in self._sources.functions}  # what the step's schedules gave
        return params, result._replace(hyperparams=state.hyperparams | used)

    def _accept_results(self, call: Call, params: Any, result: State) -> None:
        """Set the state and the variables to the results of `call`."""
        params, state = self._results(call, self._kept, params, result)
        self._put(state)
        in_full(lambda k: self._handles[k].write(params[k]), params)

    def view(self, place: Place) -> View:
        """Return the array at `place` of the state as an assignable variable (`state_views`)."""
        return view(self, place)

    @locked
    def __repr__(self) -> str:
        rule, functions = self._rule, self._sources.functions
        options = arguments_of(self._options.bind(functions), defaults=getattr(rule, "defaults", {}))
        if isinstance(rule, Foreign):
            return call(type(self).__name__, repr(rule.tx), *options)
        rate = self._rate_source if self._rate_source is not None else self._rate_given()
        if not isinstance(rule, Rule):  # hooks
            return call(type(self).__name__, f"learning_rate={rate!r}", *options)
        rule = rule.bind(functions | {"learning_rate": rate})
        own = [repr(rule)] if type(self) is Optimizer else arguments_of(rule, always="learning_rate")
        return call(type(self).__name__, *own, *options)


def _shape_and_dtype(x: Any) -> Any:
    return jnp.shape(x), jnp.result_type(x)
