"""Methods of `Optimizer` for user-defined subclasses: slots, variables, hyperparameters and build hooks."""

import contextlib
import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_keras import schedules
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.other_names import refuse_unknown
from jaxopt_keras.language.rule import RATE, Field, Number, as_scalar, fields_of
from jaxopt_keras.stateful.custom.hooks import Hooks, stand_in
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import OPTION_SLOTS, View, has, slot_groups, slots_of, with_slots
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.validation import of_length
from jaxopt_keras.stateful.variable import Variable, as_array, as_dtype, check, check_iterable, deduplicated, value_of

NUMBER = Field.read(Number)
HOOKS = ("update_step", "_resource_apply_dense", "_resource_apply_sparse")


class Custom(Transactions):
    """API for user-defined optimizers: slots, variables, hyperparameters, hooks."""

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
            ValueError: if the name is one that the library uses, or the initial value has another shape. KeyError: for
                a packed variable, whose slots are its buffer's. TypeError: for an argument of the wrong type.
        """
        if not isinstance(slot_name, str) or slot_name in OPTION_SLOTS:
            raise ValueError(
                f"`slot_name` must be a string, and not one of {[*OPTION_SLOTS]}. Received: slot_name={slot_name!r}"
            )
        key = self._keys.get(id(var))
        if key is not None and has(self._state, key, slot_name):
            return self.view(("slots", key, slot_name))
        if id(getattr(var, "buffer", None)) in self._keys:
            self._key(var)  # raises: only the buffer can have slots
        h = self._handle(var)
        array = _initial(initializer, h.shape if shape is None else shape, compute_dtype(h.dtype))
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
    def add_variable(self, shape: Any, initializer: Any = "zeros", dtype: Any = None, name: str | None = None) -> View:
        """Create a variable of the optimizer itself, kept once for all parameters. Return it as an assignable view."""
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
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> View:
        """Create a slot of `reference_variable`: Keras 3's `add_slot`. A number is appended to an existing name."""
        slots = slots_of(self._state, self._keys.get(id(reference_variable), ""))
        return self.add_slot(reference_variable, deduplicated(name or "slot", slots), initializer)

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

    def _get_variable_index(self, variable: Any) -> int:
        return self._paths.index(self._key(variable))

    def _record_name(self, name: str) -> None:
        """Record that the subclass created a slot or variable of this name."""
        if name not in self._custom_names:
            self._custom_names.append(name)

    # --- hyperparameters of TF 2 ------------------------------------------------------------------------------------

    @locked
    def _set_hyper(self, name: str, value: Any) -> None:
        """Create or set a run-time hyperparameter, which hooks read with `_get_hyper`."""
        if name == "learning_rate":
            self.learning_rate = value
            return
        value = NUMBER.check(name, value_of(value))
        self._set_state(self._state._replace(hyperparams=self._state.hyperparams | {name: as_scalar(NUMBER, value)}))
        self.__dict__["_hypers"] = self._hypers | {name: value}

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """Return the current value of a hyperparameter."""
        value = self.learning_rate if name == "learning_rate" else self.view(("hyperparams", name))
        return value if dtype is None else jnp.asarray(value_of(value)).astype(getattr(dtype, "base_dtype", dtype))

    def _serialize_hyperparameter(self, name: str) -> Any:
        """Return the current value of a hyperparameter, for `get_config`."""
        return self._rate_config() if name == "learning_rate" else float(self._get_hyper(name))

    def _decayed_lr(self, dtype: Any) -> Any:
        """Return the learning rate of this step, after the schedule."""
        return self._get_hyper("learning_rate", dtype)

    def hook_hyper(self) -> dict[str, Any]:
        """Return the run-time hyperparameters as arrays."""
        return {name: as_scalar(NUMBER, value) for name, value in self._hypers.items()}

    # --- running the hooks ------------------------------------------------------------------------------------------

    def hook_variables(self, paths: list[str]) -> list[Any]:
        """Return the variables that hooks get: ours, or stand-ins for those of other libraries and for TF 2's hooks."""
        is_tf2 = hasattr(self, "_resource_apply_dense")
        variables = {k: self._handles[k].variable for k in paths}
        return [stand_in(self, k) if is_tf2 or not isinstance(v, Variable) else v for k, v in variables.items()]

    def _run_build_hooks(self, new: list[str], own_build: bool) -> None:
        """Call the subclass's `build`, if it has one, and its `_create_slots` for new variables."""
        if not isinstance(self._rule, Hooks) or not new:
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
        """Call the subclass's `_create_slots`, if it has one, for new variables."""
        hook = getattr(self, "_create_slots", None)
        if new and hook is not None:
            hook(self.hook_variables(new))

    @contextlib.contextmanager
    def hooks_running(self) -> Iterator[None]:
        """Let hooks assign, but create nothing, while they are traced. If one raises, all changes are undone."""
        with self._transaction():
            object.__setattr__(self, "_in_hooks", True)
            yield
            object.__setattr__(self, "_in_hooks", False)

    def _invalidate_traces(self) -> None:
        """Discard traced hooks after an attribute has changed."""
        if isinstance(self._rule, Hooks) and not self._in_hooks:
            object.__setattr__(self, "_kernel_cache", None)

    # --- arguments --------------------------------------------------------------------------------------------------

    def _tf2_rate(self, kwargs: dict[str, Any]) -> Any:
        """Remove TF 2's `lr` and `decay` from the keyword arguments, and return the rate."""
        rate = kwargs.pop("lr", 0.001)
        decay = kwargs.pop("decay", 0.0)
        return schedules.InverseTimeDecay(rate, 1, decay) if decay else rate

    def _extras(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments, which must be options that Keras lacks, without TF's `decay`.

        Raises:
            TypeError: for an unknown argument.
        """
        if kwargs.pop("decay", None) is not None:
            warnings.warn("`decay` is ignored, as in Keras 3: use a schedule.", stacklevel=4)
        refuse_unknown(type(self).__name__, kwargs, (RATE, *fields_of(Options)))
        return kwargs


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
