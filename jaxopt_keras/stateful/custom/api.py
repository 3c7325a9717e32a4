"""Methods of `Optimizer` for user-defined subclasses: slots, variables, hyperparameters and build hooks."""

import contextlib
import dataclasses
import functools
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.other_names import refuse_unknown
from jaxopt_keras.language.rule import RATE, Rule, fields_of
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.custom.inner import Inner
from jaxopt_keras.stateful.custom.older_names import OlderNames, hyper_key
from jaxopt_keras.stateful.custom.overrides import HOOKS, in_library, overridden, refuse_overrides, without_effect
from jaxopt_keras.stateful.custom.stand_ins import stand_in, wants_tensors
from jaxopt_keras.stateful.custom.steps import Steps
from jaxopt_keras.stateful.keras_scope import mapped
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import (
    OPTION_SLOTS,
    View,
    device_put_like,
    has,
    slot_groups,
    slots_of,
    with_slots,
)
from jaxopt_keras.stateful.validation import of_length
from jaxopt_keras.stateful.variable import Variable, as_array, as_dtype, check, check_iterable, deduplicated, value_of

OLDER_ARGUMENTS = {"jit_compile": True, "gradient_transformers": (), "gradient_aggregator": None}
RUNNING = ("_in_hooks", "_traced", "_mapped_variables")


class Custom(Steps, OlderNames, Inner):
    """API for user-defined optimizers: slots, variables, hyperparameters, hooks."""

    _runs_rule: ClassVar[bool] = False
    """Whether this is a named class, or is derived from one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not in_library(cls):
            refuse_overrides(cls, without_effect(cls, cls._runs_rule))
            if "build" in vars(cls):
                cls.build = _finding_attributes(cls.build)

    # --- slots and variables ----------------------------------------------------------------------------------------

    @locked
    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> View:
        """Return the slot `slot_name` of `var` as an assignable view; it is created if it does not exist.

        Args:
            var: a variable. It is registered if it is new.
            slot_name: name of the slot.
            initializer: "zeros", "ones", an array, a number, or a function of (shape, dtype).
            shape: shape of the slot; None: that of `var`.

        Raises:
            ValueError: if the initial value has another shape. KeyError: for
                a packed variable, whose slots are its buffer's. TypeError: for an argument of the wrong type.
        """
        if not isinstance(slot_name, str):
            raise ValueError(f"`slot_name` must be a string. Received: slot_name={slot_name!r}")
        slot_name = hyper_key(slot_name)
        key = self._keys.get(id(var))
        if key is not None and has(self._state, key, slot_name):
            return self.view(("slots", key, slot_name))
        if id(getattr(var, "buffer", None)) in self._keys:
            self._key(var)  # raises: only the buffer can have slots
        h = self._handle(var)
        if shape is None and getattr(initializer, "shape", None) == () and not isinstance(initializer, np.generic):
            shape = ()  # TF 2: an array has its own shape
        array = _initial(initializer, h.shape if shape is None else shape, compute_dtype(h.dtype))
        if array.shape == tuple(h.shape):
            array = device_put_like(array, h.read())
        with self._transaction():
            self._register([var])
            key = self._key(var)
            self._set_state(with_slots(self._state, {key: slots_of(self._state, key) | {slot_name: array}}))
            self._record_name(slot_name)
        return self.view(("slots", key, slot_name))

    def get_slot(self, var: Any, slot_name: str) -> View:
        """Return a slot as an assignable view.

        Raises:
            KeyError: if there is no such variable or slot; the message lists those that exist.
        """
        shared: Any = getattr(var, "buffer", None)
        if id(var) in self._keys or id(shared) not in self._keys:
            shared = None
        key = self._key(var if shared is None else shared)
        slots = slots_of(self._state, key)
        slot_name = hyper_key(slot_name) if hyper_key(slot_name) in slots else slot_name
        if slot_name not in slots:
            raise KeyError(f"`{key}` has no slot `{slot_name}`. Its slots: {sorted(slots)}")
        place = ("slots", key, slot_name)
        return self.view(place if shared is None else (*place, shared.parts[id(var)]))

    def get_slot_names(self) -> list[str]:
        """Return the names of all slots: the rule's and a subclass's, then those of `use_ema` and accumulation."""
        found = {name for name, tree in self._state.slots.items() if tree}
        groups = slot_groups(self._state, self._rule, self._custom_names)
        return [name for group in (*groups, OPTION_SLOTS) for name in group if name in found]

    @locked
    def add_variable(
        self,
        shape: Any,
        initializer: Any = "zeros",
        dtype: Any = None,
        name: str | None = None,
        aggregation: Any = None,
        layout: Any = None,
    ) -> View:
        """Create a variable of the optimizer itself, kept once for all parameters. Return it as an assignable view.

        The last two arguments are Keras's, and have no effect.
        """
        check(isinstance(name, str | None), "name", name, "a string or None")
        name = deduplicated(name or "variable", self._state.scalars)
        array = _initial(initializer, shape, jnp.result_type(float) if dtype is None else as_dtype(dtype))
        self._set_state(self._state._replace(scalars=self._state.scalars | {name: array}))
        self._record_name(name)
        return self.view(("scalars", name))

    def add_weight(
        self,
        name: str,
        shape: Any,
        dtype: Any = None,
        initializer: Any = "zeros",
        trainable: Any = None,
        synchronization: Any = None,
        aggregation: Any = None,
    ) -> View:
        """Create a variable as `add_variable` does, with TF 2's arguments. The last three have no effect."""
        return self.add_variable(shape, initializer, dtype, name)

    def add_variable_from_reference(
        self,
        reference_variable: Any = None,
        name: str | None = None,
        initializer: Any = "zeros",
        *,
        model_variable: Any = None,
        variable_name: str | None = None,
        shape: Any = None,
        initial_value: Any = None,
    ) -> View:
        """Create a slot of `reference_variable`: Keras 3's `add_slot`. A number is appended to an existing name.

        A variable that the optimizer does not have gives its shape and dtype only: the result is one of `add_variable`.
        The keyword-only arguments are those of tf.keras 2.11.
        """
        reference = model_variable if reference_variable is None else reference_variable
        name = name or variable_name or "slot"
        initializer = initializer if initial_value is None else initial_value
        key = self._keys.get(id(reference))
        if key is None and self._paths:
            dtype = getattr(reference.dtype, "base_dtype", reference.dtype)
            shape = tuple(reference.shape) if shape is None else shape
            stem = str(getattr(reference, "path", None) or reference.name).replace("/", "_").replace(":", "_")
            return self.add_variable(shape, initializer, compute_dtype(jnp.dtype(dtype)), f"{stem}_{name}")
        return self.add_slot(reference, deduplicated(name, slots_of(self._state, key or "")), initializer, shape)

    def add_optimizer_variables(self, trainable_variables: Sequence[Any], name: Any, initializer: Any = "zeros") -> Any:
        """Create a slot for each variable, and return the list; for a list of names, return a tuple of lists."""
        if isinstance(name, str):
            variables = check_iterable("trainable_variables", trainable_variables)
            return [self.add_slot(v, name, initializer) for v in variables]
        is_names = isinstance(name, (list, tuple)) and all(isinstance(n, str) for n in name)
        check(is_names, "name", name, "a string or a list of strings")
        each = initializer if isinstance(initializer, (list, tuple)) else [initializer] * len(name)
        each = of_length("initializer", each, len(name))
        return tuple(self.add_optimizer_variables(trainable_variables, n, i) for n, i in zip(name, each, strict=True))

    def assign(self, variable: Any, value: Any) -> None:
        """Assign `value` to `variable`."""
        variable.assign(value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Add `value` to `variable` in place."""
        variable.assign_add(value)

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtract `value` from `variable` in place."""
        variable.assign_sub(value)

    def _record_name(self, name: str) -> None:
        """Record that the subclass created a slot or variable of this name."""
        if name not in self._custom_names:
            self._custom_names.append(name)

    # --- running the hooks ------------------------------------------------------------------------------------------

    def hook_variables(self, paths: list[str]) -> list[Any]:
        """Return the variables that hooks get: ours, or stand-ins for those of other libraries and for TF's hooks."""
        tensors = wants_tensors(self)
        variables = {k: self._handles[k].variable for k in paths}
        return [stand_in(self, k) if tensors or not isinstance(v, Variable) else v for k, v in variables.items()]

    def _run_build_hooks(self, new: list[str], own_build: bool) -> None:
        """Call the subclass's `build`, if it has one, and its `_create_slots` for new variables."""
        if not self._has_hooks() or not new:
            return
        cls: Any = type(self)
        if own_build:
            if self.built:
                raise ValueError(
                    f"{cls.__name__} was built for {[k for k in self._paths if k not in new]}. Received: new "
                    f"variables {new}. Build it with all of them."
                )
            self.build(self.hook_variables(self._paths))
        self._create_slots_of(new)

    def _create_slots_of(self, new: list[str]) -> None:
        """Call the subclass's `_create_hypers` and `_create_slots` for new variables, and find its attributes."""
        if new:
            self._create_hypers()
            self._create_slots(self.hook_variables(new))
            self._find_attributes(new=True)

    @contextlib.contextmanager
    def hooks_running(self, scope: Any, now: Any, scalars: Any, inner: dict[str, Any]) -> Iterator[None]:
        """Map variables and states to the values of a step. Hooks may assign, but create nothing.

        Args:
            scope: the map.
            now: the time and hyperparameters of the step.
            scalars: those at the start of the step.
            inner: the states of the inner optimizers at the start of the step, by path.
        """
        traced = {self: (now.hyper, scalars)}
        traced |= {self._nested[path]: (state.hyperparams, state.scalars) for path, state in inner.items()}
        known = {id(self._handles[k].variable): v for k, v in zip(self._paths, self._trainable_variables, strict=True)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._transaction())
            for optimizer, start in traced.items():
                before = {name: optimizer.__dict__[name] for name in RUNNING}
                stack.callback(optimizer.__dict__.update, before)
                optimizer.__dict__.update(_in_hooks=True, _traced=start, _mapped_variables=known)
                keys = {id(v): optimizer._keys[i] for i, v in known.items() if i in optimizer._keys}
                optimizer._keys.update(keys)
            stack.enter_context(mapped(scope))
            yield

    def _invalidate_traces(self) -> None:
        """Discard traced hooks after an attribute has changed."""
        if self._has_hooks() and not self._in_hooks:
            object.__setattr__(self, "_kernel_cache", None)

    def _has_hooks(self) -> bool:
        """Whether code of a subclass runs inside the step."""
        transforms = self.__dict__.get("gradient_transformers") or self.__dict__.get("gradient_aggregator")
        named = isinstance(self._rule, Rule) and (overridden(type(self), HOOKS) or transforms)
        return isinstance(self._rule, Hooks) or bool(named)

    def _core(self, rule: Any) -> Any:
        """Return the core of an optimizer: it leaves slots and scalars alone that the user's class creates."""
        core = Leafwise(rule) if isinstance(rule, Rule) else rule
        if isinstance(core, Hooks):
            return core
        core = dataclasses.replace(core, any_slots=True)
        return Hooks(self, core=core) if self._has_hooks() else core

    def _read_by_hooks(self, rule: Any, options: Options) -> bool:
        """Whether hooks have read a setting that `rule` or `options` change: they must be traced again."""
        changed = [(self._options, options), *([(self._rule, rule)] if isinstance(rule, Rule) else [])]
        return any(getattr(a, n, None) != getattr(b, n, None) for a, b in changed for n in self._read_names)

    # --- arguments --------------------------------------------------------------------------------------------------

    def _older_arguments(self, kwargs: dict[str, Any], tf2: bool) -> dict[str, Any]:
        """Remove the arguments of TF 2 and tf.keras 2.11 from the keyword arguments.

        Args:
            tf2: whether the class is written for TF 2, where `lr` and `decay` are arguments of every class.

        Returns:
            attributes of the optimizer; `learning_rate`, if `lr` is given, is one of them.
        """
        own = {name: kwargs.pop(name, default) for name, default in OLDER_ARGUMENTS.items()}
        kwargs.pop("is_legacy_optimizer", None)
        if tf2:
            own |= {"_initial_decay": kwargs.pop("decay", None) or 0.0}
            own |= {"learning_rate": kwargs.pop("lr")} if "lr" in kwargs else {}
        return own

    def _extras(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, which must be options that Keras lacks, without TF's `decay`.

        Raises:
            TypeError: for an unknown argument.
        """
        if kwargs.pop("decay", None) is not None:
            warnings.warn("`decay` is ignored, as in Keras 3: use a schedule.", stacklevel=4)
        refuse_unknown(type(self).__name__, kwargs, (RATE, *fields_of(Options)))
        return kwargs


def _finding_attributes(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a user's `build`, after which variables and optimizers among the attributes are part of the state."""

    @functools.wraps(build)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self._find_attributes(new=True)

    return run


def _initial(initializer: Any, shape: Any, dtype: Any) -> Any:
    """Return the initial array of a slot or variable.

    Raises:
        TypeError: if `shape` is not integers. ValueError: if it has a negative one, or the initializer does not fit.
    """
    try:
        shape = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"`shape` must be a tuple of integers. Received: shape={shape!r}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"`shape` must hold no negative number. Received: shape={shape!r}")
    initializer = value_of(initializer)  # TF's tensors can be called
    if isinstance(initializer, str):
        if initializer not in ("zeros", "ones"):
            raise ValueError(
                f'`initializer` must be "zeros", "ones", an array or a function. Received: initializer={initializer!r}'
            )
        initializer = float(initializer == "ones")
    value = as_array(initializer(shape, dtype) if callable(initializer) else initializer, "initializer")
    if value.ndim and value.shape != shape:
        raise ValueError(f"`initializer` must give an array of shape {shape}. Received: shape {value.shape}")
    return jnp.array(jnp.broadcast_to(value, shape), dtype)
