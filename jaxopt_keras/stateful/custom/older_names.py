"""Names that classes of Keras 3, tf.keras 2.11 and TF 2 find in their base class."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_keras import schedules
from jaxopt_keras.language.rule import Field, Number, as_scalar
from jaxopt_keras.language.sparse import IndexedSlices
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import OPTION_SLOTS, RATE, STEP
from jaxopt_keras.stateful.transactions import OPTIONS, Transactions
from jaxopt_keras.stateful.variable import as_dtype, value_of

NUMBER = Field.read(Number)


class OlderNames(Transactions):
    """Private attributes and methods of Keras's base classes that code of subclasses uses."""

    _use_locking = False

    # --- Keras 3 and 2.11 -------------------------------------------------------------------------------------------

    @property
    def _iterations(self) -> Any:
        """The count of updates. It can be set to that of another optimizer, which is used then."""
        return self.view(STEP) if self._iterations_from is None else self._iterations_from

    @_iterations.setter
    def _iterations(self, variable: Any) -> None:
        self.__dict__["_iterations_from"] = variable

    @property
    def _trainable_variables(self) -> list[Any]:
        """The variables, as hooks get them."""
        return self.hook_variables(self._paths)

    @property
    def _index_dict(self) -> dict[Any, int]:
        """The number of each variable by its `_var_key`."""
        return {path: i for i, path in enumerate(self._paths)}

    _trainable_variables_indices = _index_dict

    def _var_key(self, variable: Any) -> Any:
        return self._keys.get(id(variable), id(variable))

    def _get_variable_index(self, variable: Any) -> int:
        return self._paths.index(self._key(variable))

    def _track_variable(self, variable: Any) -> None:
        """Do nothing: variables among the attributes are part of the state."""

    _track_trackable = _add_variable_with_custom_getter = lambda self, *args, **kwargs: None

    def _build_learning_rate(self, learning_rate: Any) -> Any:
        """Return the rate: `self._learning_rate = self._build_learning_rate(...)` sets it."""
        return learning_rate

    def _check_super_called(self) -> None:
        """Do nothing: it is checked when an attribute is set."""

    # --- hyperparameters of TF 2 ------------------------------------------------------------------------------------

    @locked
    def _set_hyper(self, name: str, value: Any) -> None:
        """Create or set a hyperparameter, which hooks read with `_get_hyper`. A number is a run-time value."""
        if name == "learning_rate":
            self._set_rate(value)
            return
        value = value_of(value)
        if not is_number(value) and not (name in self._hypers and is_number(self._hypers[name])):
            self.__dict__["_hypers"] = self._hypers | {name: value}
            self._invalidate_traces()
            return
        value = NUMBER.check(name, value)
        key = hyper_key(name)
        self._set_state(self._state._replace(hyperparams=self._state.hyperparams | {key: as_scalar(NUMBER, value)}))
        self.__dict__["_hypers"] = self._hypers | {name: value}

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """Return the current value of a hyperparameter. A function is called; a schedule is returned as it is."""
        value = self._hypers.get(name)
        if name == "learning_rate":
            value = self._present_rate()
        elif is_number(value):
            value = self.view(("hyperparams", hyper_key(name)))
        elif callable(value) and not schedules.is_schedule(value):
            value = value()
        elif name not in self._hypers:
            raise AttributeError(f"{self.name} has no hyperparameter {name!r}. It has: {sorted(self._hypers)}")
        if dtype is None or not hasattr(value, "dtype") and not is_number(value):
            return value
        return jnp.asarray(value_of(value)).astype(as_dtype(dtype))

    def _serialize_hyperparameter(self, name: Any) -> Any:
        """Return the current value of a hyperparameter for `get_config`: by its name or, as in 2.11, by its value."""
        if name == "learning_rate" or getattr(name, "place", None) == RATE or name is self._rate_source:
            return self._rate_config()
        value = self._get_hyper(name) if isinstance(name, str) else name
        if isinstance(value, schedules.LearningRateSchedule):
            return schedules.serialize(value)
        return value if value is None or isinstance(value, (bool, str)) else float(value_of(value))

    def hook_hyper(self) -> dict[str, Any]:
        """Return the run-time hyperparameters as arrays."""
        return {hyper_key(name): as_scalar(NUMBER, x) for name, x in self._hypers.items() if is_number(x)}

    def _decayed_lr(self, var_dtype: Any) -> Any:
        """Return the learning rate of this step, after the schedule and TF 2's `decay`."""
        rate = self._get_hyper("learning_rate", var_dtype)
        if not self._initial_decay:
            return rate
        decay = jnp.asarray(self._initial_decay, rate.dtype)
        return rate / (1 + decay * self.iterations.value.astype(rate.dtype))

    # --- TF 2's state of a step -------------------------------------------------------------------------------------

    def _create_hypers(self) -> None:
        """Do nothing: hyperparameters exist when they are set."""

    def _create_slots(self, var_list: Sequence[Any]) -> None:
        """Create the slots of variables. Those of a named class are created when a variable is registered."""
        self._ensure([v for v in var_list if id(v) not in self._keys])

    def _prepare(self, var_list: Sequence[Any]) -> dict[Any, Any]:
        """Return what hooks get as `apply_state`: the coefficients of this step by (device, dtype)."""
        state: dict[Any, Any] = {}
        for device, dtype in dict.fromkeys((getattr(v, "device", ""), v.dtype) for v in var_list):
            state[device, dtype] = {}
            self._prepare_local(device, dtype, state)
        return state

    @property
    def _dense_apply_args(self) -> list[str]:
        """The names of the arguments of `_resource_apply_dense`, which wrappers look up in."""
        return [*inspect.signature(self._resource_apply_dense).parameters]

    @property
    def _sparse_apply_args(self) -> list[str]:
        """The names of the arguments of `_resource_apply_sparse`."""
        return [*inspect.signature(self._resource_apply_sparse).parameters]

    def _prepare_local(self, var_device: Any, var_dtype: Any, apply_state: dict[Any, Any]) -> None:
        """Compute the coefficients of one device and dtype."""
        coefficients = apply_state.setdefault((var_device, var_dtype), {})
        coefficients["lr_t"] = self._decayed_lr(var_dtype)

    def _fallback_apply_state(self, var_device: Any, var_dtype: Any) -> dict[str, Any]:
        """Return the coefficients of one device and dtype."""
        state: dict[Any, Any] = {(var_device, var_dtype): {}}
        self._prepare_local(var_device, var_dtype, state)
        return state[var_device, var_dtype]

    def _resource_scatter_add(self, x: Any, i: Any, v: Any) -> Any:
        """Add rows `v` to the variable `x` at the indices `i`."""
        return x.scatter_add(IndexedSlices(value_of(v), i))

    def _resource_scatter_update(self, x: Any, i: Any, v: Any) -> Any:
        """Replace the rows of the variable `x` at the indices `i`."""
        return x.scatter_update(IndexedSlices(value_of(v), i))


def is_number(value: Any) -> bool:
    """Whether the value of a hyperparameter is a run-time number."""
    return not (value is None or isinstance(value, (bool, str)) or callable(value))


def hyper_key(name: str) -> str:
    """Return the name of a class's hyperparameter or slot in the state: not that of an option."""
    return f"{name}_of_hooks" if name in OPTIONS or name in OPTION_SLOTS else name
