"""A `keras.optimizers.Optimizer` that runs an optimizer of this library."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras.src.backend import in_stateless_scope

from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.interop.keras.state import Address, Layout, StateVariable
from jaxopt_keras.language.printing import call
from jaxopt_keras.schedules.configs import CLASSES as SCHEDULES
from jaxopt_keras.stateful.configs import RATE_FIELD, arguments_of, without_exclusion
from jaxopt_keras.stateful.custom.overrides import (
    HOOKS,
    NEVER_CALLED,
    NOT_BY_A_RULE,
    in_library,
    overrides,
    refuse_overrides,
)
from jaxopt_keras.stateful.lock import LOCK
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.state_views import RATE, STEP
from jaxopt_keras.stateful.transactions import OPTIONS
from jaxopt_keras.stateful.validation import as_gradient, pairs
from jaxopt_keras.stateful.variable import value_of

IN_TRAINER = (
    "Keras's trainer holds the optimizer's state at the moment, inside its compiled loop. In a callback, access it "
    "through `self.model.optimizer`, which makes Keras write the state back first."
)
INSIDE = (
    "the whole step is one call of `wrapped`. Derive the class from an optimizer of `jaxopt_keras`, such as "
    "`jaxopt_keras.Adam`, and adapt it by `as_keras`; or derive it from `keras.optimizers.Optimizer`"
)
SCHEDULED = (
    "This optimizer was created with a `LearningRateSchedule` or a function, so `learning_rate` cannot be set to a "
    "number, as ReduceLROnPlateau and LearningRateScheduler do. Make it with a number, or set another schedule. "
    "Received: learning_rate={!r}"
)


class Adapter(keras.optimizers.Optimizer):
    """Base class of the classes in `jaxopt_keras.interop.keras`.

    `wrapped` is the optimizer of this library, which owns the state and computes the steps. Its hyperparameters,
    options and methods are attributes of the adapter too.
    """

    wrapped: Any
    built: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not in_library(cls):
            refuse_overrides(cls, NEVER_CALLED | NOT_BY_A_RULE | dict.fromkeys(HOOKS, INSIDE))

    def _wrap(self, optimizer: Optimizer, name: str | None) -> None:
        keras.optimizers.Optimizer.__init__(self, learning_rate=0.0, name=name)
        for option in OPTIONS.keys() - {"name"}:
            self.__dict__.pop(option, None)  # `wrapped` has them
        optimizer.name = self.name
        self.__dict__.update(wrapped=optimizer, _known={})
        self._list_variables()

    def _list_variables(self) -> None:
        """Updates `variables` to the current arrays of the state. Known arrays keep their variable object."""
        layout = Layout(self.wrapped)
        with keras.name_scope(self.name):
            known = {
                address: self._known[address] if address in self._known else StateVariable(address, name)
                for address, name in layout.addresses
            }
        self.__dict__.update(  # not as attributes, or Keras would list them a second time
            _layout=layout,
            _known=known,
            _variables=[*known.values()],
            _iterations=known[Address.of(self.wrapped.view(STEP))],
            _learning_rate=known.get(Address.of(self.wrapped.view(RATE))),
        )

    def __getattr__(self, name: str) -> Any:
        """A setting or a method of `wrapped` that Keras's optimizers lack."""
        if name.startswith("_") or "wrapped" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wrapped, name)

    def __repr__(self) -> str:
        if "wrapped" not in self.__dict__:
            return object.__repr__(self)
        same = type(self).__name__ == type(self.wrapped).__name__
        return repr(self.wrapped) if same else call(type(self).__name__, repr(self.wrapped))

    def __setattr__(self, name: str, value: Any) -> None:
        wrapped = self.__dict__.get("wrapped")
        if wrapped is None:
            super().__setattr__(name, value)
        elif name in self.__dict__ or hasattr(type(self), name) or name.startswith("_") or not hasattr(wrapped, name):
            object.__setattr__(self, name, value)
        else:
            if self._iterations.in_trainer:
                raise RuntimeError(IN_TRAINER)
            setattr(wrapped, name, value)
            self._list_variables()  # an option may have added slots

    # --- settings ---------------------------------------------------------------------------------------------------

    def _check_present(self) -> None:
        """Raises a RuntimeError if Keras's trainer holds the state, and this is not inside its compiled loop."""
        if not in_stateless_scope() and self._iterations.in_trainer:
            raise RuntimeError(IN_TRAINER)

    @property
    def iterations(self) -> Any:
        """The number of updates. With gradient accumulation, calls are not counted."""
        self._check_present()
        return self._iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate: a variable, or the current value of the schedule or function."""
        self._check_present()
        if self.wrapped._rate_source is None:
            return self._learning_rate if self._learning_rate is not None else self.wrapped.learning_rate
        return self.wrapped._scheduled(self._iterations.value)["learning_rate"]

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self._check_present()
        value = array_of(value_of(learning_rate))
        if self.wrapped._rate_source is not None and not callable(value):
            raise TypeError(SCHEDULED.format(value))
        if callable(value) or self._learning_rate is None:
            self.wrapped.learning_rate = value  # for a number it raises an error that says why
            self._list_variables()
        else:
            self._learning_rate.assign(RATE_FIELD.check("learning_rate", value))

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.wrapped.exclude_from_weight_decay(var_list, var_names)

    def scale_loss(self, loss: Any) -> Any:
        return self.wrapped.scale_loss(loss)

    # --- variables --------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        """The iteration, the learning rate (unless scheduled) and the slots, in the order of Keras 3."""
        return [*self._variables]

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the slots. Variables with `overwrite_with_gradient` get none: they are set to their gradient.

        A second call, after layers were frozen or unfrozen, makes the slots of new variables and keeps all others.
        """
        variables = list(variables)
        if self.built:
            if [*map(id, variables)] == [*self._trainable_variables_indices]:
                return
            self._check_present()
        overwritten = [v for v in variables if getattr(v, "overwrite_with_gradient", False)]
        if overwritten and self.wrapped.gradient_accumulation_steps:
            raise ValueError(
                "`gradient_accumulation_steps` must be None with variables that are set to their gradients (of float8 "
                f"layers). Received: {[v.path for v in overwritten]}"
            )
        updated = [v for v in variables if not getattr(v, "overwrite_with_gradient", False)]
        self.wrapped.build(updated)
        if self.built and self.wrapped.gradient_accumulation_steps:
            self.wrapped._drop_sums_of_frozen()
        if not self.built and len(self.wrapped._paths) != len(updated):
            raise ValueError(
                f"{self.name} must be built with all variables that have slots: {self.wrapped._paths}. Received: "
                f"{[v.path for v in updated]}"
            )
        self._trainable_variables = variables
        self._trainable_variables_indices = {id(v): i for i, v in enumerate(variables)}
        self._list_variables()
        self.built = True

    def _slots(self, name: str) -> list[Any]:
        known = {address.keys: v for address, v in self._known.items()}
        found = [known.get(("slots", self.wrapped._keys.get(id(v)), name)) for v in self._trainable_variables]
        if all(v is None for v in found):
            raise AttributeError(f"{self.name} has no slot {name!r}")
        return found

    @property
    def _model_variables_moving_average(self) -> list[Any]:  # SwapEMAWeights reads this attribute
        return self._slots(AVERAGE)

    @property
    def _accumulated_gradients(self) -> list[Any]:
        return self._slots(SUM)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        here = [v for v in var_list if v._value is not None]  # None: after an error in `fit`, which is to be seen
        self.wrapped.finalize_variable_values([v for v in here if id(v) in self.wrapped._keys])

    def get_weights(self) -> list[Any]:
        """The values of `variables`, as `set_weights` takes them."""
        return [v.numpy() for v in self.variables]

    def save_own_variables(self, store: Any) -> None:
        if overrides(type(self.wrapped), "save_own_variables"):
            self.wrapped.save_own_variables(store)
        else:
            super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        if overrides(type(self.wrapped), "load_own_variables"):
            self.wrapped.load_own_variables(store)
        else:
            super().load_own_variables(store)

    # --- steps ------------------------------------------------------------------------------------------------------

    def apply_gradients(self, grads_and_vars: Iterable[Any], **given: Any) -> Any:
        self.apply(*pairs(grads_and_vars), **given)
        return self._iterations

    def flush(self) -> Any:
        """Ends the window of accumulation now, as at the end of an epoch (`Optimizer.flush`). Returns `iterations`."""
        self._check_present()
        with LOCK:
            for v in self._variables:
                v.copy_if_referenced()
            self.wrapped.flush()
        return self._iterations

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None, **given: Any) -> None:
        """Makes one step as one compiled call, which donates the state; `given`: a loss, a weight, a flush."""
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError("`apply(grads)` needs a built optimizer. Call `build(variables)` first.")
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"`grads` must hold one gradient for each variable. Received: {len(grads)} gradients for "
                f"{len(variables)} variables"
            )
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        grads, variables = self._filter_empty_gradients(grads, variables)
        if in_stateless_scope():
            values, params = [v.value for v in self._variables], self._trainable_variables
            by_id = {id(v): g for g, v in zip(grads, variables, strict=True)}
            new, state = self._stepped(values, [by_id.get(id(v)) for v in params], [v.value for v in params], **given)
            for v, x in [*zip(params, new, strict=True), *zip(self._variables, state, strict=True)]:
                v.assign(x)
            return
        self._check_present()
        updated = [(g, v) for g, v in zip(grads, variables, strict=True) if id(v) in self.wrapped._keys]
        with LOCK:
            for v in self._variables:
                v.copy_if_referenced()
            if updated:
                self.wrapped.apply(*pairs(updated), **given)
        for g, v in zip(grads, variables, strict=True):
            if id(v) not in self.wrapped._keys:
                v.assign(g)

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Makes one step as a pure function; returns (new trainable variables, new optimizer variables).

        Raises:
            ValueError: if the optimizer is not built, a list has a wrong length, or all gradients are None.
        """
        if not self.built:
            raise ValueError("`stateless_apply` needs a built optimizer. Call `build(trainable_variables)` first.")
        if overrides(type(self), "apply"):  # pyright: ignore[reportArgumentType]  # a class can be hashed
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)  # calls `apply` in a scope
        for name, given, length in (
            ("optimizer_variables", optimizer_variables, len(self._variables)),
            ("grads", grads, len(self._trainable_variables)),
            ("trainable_variables", trainable_variables, len(self._trainable_variables)),
        ):
            if len(given) != length:
                raise ValueError(
                    f"Argument `{name}` must be a list of {length} arrays. Received: {len(given)}. After layers were "
                    "frozen or unfrozen, and before `fit`, call `model.optimizer.build(model.trainable_variables)`: "
                    "new variables get slots, all others keep theirs."
                )
        if grads:  # a model may have no variables
            self._filter_empty_gradients(grads, self._trainable_variables)
        return self._stepped(optimizer_variables, grads, trainable_variables)

    def _stepped(
        self, values: Sequence[Any], grads: Sequence[Any], params: Sequence[Any], **others: Any
    ) -> tuple[Any, Any]:
        keys = [self.wrapped._keys.get(id(v)) for v in self._trainable_variables]  # None: set to its gradient
        state = self._layout.assemble([array_of(v) for v in values])
        arrays = {k: array_of(p) for k, p in zip(keys, params, strict=True) if k is not None}
        given = {
            k: as_gradient(array_of(g), k) for k, g in zip(keys, grads, strict=True) if k in arrays and g is not None
        }
        if given:
            arrays, state = self.wrapped._pure_step(given, state, arrays, reduce=True, **others)
        overwritten = [array_of(p if g is None else g) for g, p in zip(grads, params, strict=True)]
        new = [x if k is None else arrays[k] for k, x in zip(keys, overwritten, strict=True)]
        return new, self._layout.arrays(state)

    # --- configs and copies -----------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        rate = self.wrapped._rate_source
        if rate is None or isinstance(rate, tuple(SCHEDULES.values())):
            return self.wrapped.get_config()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`learning_rate` is a function")
            config = self.wrapped.get_config()
        return config | {"learning_rate": keras.saving.serialize_keras_object(rate)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        config, rate = dict(config), config.get("learning_rate")
        if isinstance(rate, dict) and not str(rate.get("module")).startswith("jaxopt_keras"):
            config["learning_rate"] = keras.saving.deserialize_keras_object(rate, custom_objects=custom_objects)
        config, excluded = without_exclusion(config)
        adapter = cls(**arguments_of(config, custom_objects))
        adapter.wrapped._exclude_again(excluded)
        return adapter

    def __reduce__(self) -> Any:
        """A pickle or a copy contains the state, but no variables: call `build` with them."""
        return adapter_of, (type(self), self.wrapped)


def adapter_of(cls: type[Adapter], optimizer: Optimizer) -> Any:
    """An adapter of class `cls` for an existing optimizer."""
    adapter = cls.__new__(cls)
    adapter._wrap(optimizer, optimizer.name)
    return adapter


def array_of(x: Any) -> Any:
    """The value of a Keras variable, also inside a stateless scope; other objects unchanged."""
    return x.value if isinstance(x, keras.Variable) else x
