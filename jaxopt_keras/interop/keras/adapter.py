"""A `keras.optimizers.Optimizer` that runs an optimizer of this library."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras.src.backend import in_stateless_scope

from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.interop.keras.state import Layout, Spot, StateVariable
from jaxopt_keras.interop.keras.steps import Steps, array_of
from jaxopt_keras.schedules.configs import CLASSES as SCHEDULES
from jaxopt_keras.stateful.configs import arguments_of
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.settings import OPTIONS, RATE_FIELD
from jaxopt_keras.stateful.state_views import RATE, STEP
from jaxopt_keras.stateful.variable import value_of

AWAY = (
    "Keras's trainer has the optimizer's state at the moment, inside its compiled loop. A callback reaches it through "
    "`self.model.optimizer`, which makes Keras bring the state back first."
)
FIXED = (
    "This optimizer was created with a `LearningRateSchedule` or a function, so `learning_rate` cannot be set to a "
    "number, as ReduceLROnPlateau and LearningRateScheduler do. Make it with a number, or set another schedule. "
    "Received: learning_rate={!r}"
)


class Adapter(Steps, keras.optimizers.Optimizer):
    """What the classes of `jaxopt_keras.interop.keras` have in common.

    `wrapped` is the optimizer of this library: the state and the arithmetic are its own. Its hyperparameters, options
    and methods are attributes here too.
    """

    wrapped: Any
    built: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "update_step" in cls.__dict__:
            raise TypeError(
                f"`update_step` of {cls.__name__} would never run: the whole step is one call of `wrapped`. Derive the "
                "class from `keras.optimizers.Optimizer`, or from `jaxopt_keras.Optimizer` for `as_keras`."
            )

    def _wrap(self, optimizer: Optimizer, name: str | None) -> None:
        keras.optimizers.Optimizer.__init__(self, learning_rate=0.0, name=name)
        for option in OPTIONS.keys() - {"name"}:
            self.__dict__.pop(option, None)  # `wrapped` has them
        optimizer.name = self.name
        self.__dict__.update(wrapped=optimizer, _known={})
        self._list()

    def _list(self) -> None:
        """Makes `variables` those that the state has now; what was among them before is the same object."""
        layout = Layout(self.wrapped)
        with keras.name_scope(self.name):
            known = {
                spot: self._known[spot] if spot in self._known else StateVariable(self.wrapped, spot, name)
                for spot, name in layout.spots
            }
        self.__dict__.update(  # not as attributes, or Keras would list them a second time
            _layout=layout,
            _known=known,
            _variables=[*known.values()],
            _iterations=known[Spot.of(STEP)],
            _learning_rate=known.get(Spot.of(RATE)),
        )

    def __getattr__(self, name: str) -> Any:
        """A setting or a method of `wrapped` that Keras's optimizers have not."""
        if name.startswith("_") or "wrapped" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        wrapped = self.__dict__.get("wrapped")
        if wrapped is None:
            super().__setattr__(name, value)
        elif name in self.__dict__ or hasattr(type(self), name) or name.startswith("_") or not hasattr(wrapped, name):
            object.__setattr__(self, name, value)
        else:
            self._check_present()
            setattr(wrapped, name, value)
            self._list()  # an option may have brought slots

    # --- settings ---------------------------------------------------------------------------------------------------

    def _check_present(self) -> None:
        if self._iterations.away:
            raise RuntimeError(AWAY)

    @property
    def iterations(self) -> Any:
        """The number of updates made; under accumulation, not the number of calls."""
        if not in_stateless_scope():
            self._check_present()
        return self._iterations

    @property
    def learning_rate(self) -> Any:
        """The rate: a variable, or what the schedule or function gives now."""
        if not in_stateless_scope():
            self._check_present()
        if self.wrapped._rate_source is None:
            return self._learning_rate if self._learning_rate is not None else self.wrapped.learning_rate
        return self.wrapped._rate_now(self._iterations.value)

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        if not in_stateless_scope():
            self._check_present()
        value = array_of(value_of(learning_rate))
        if callable(value):
            self.wrapped.learning_rate = value
            self._list()
        elif self.wrapped._rate_source is not None:
            raise TypeError(FIXED.format(value))
        elif self._learning_rate is None:
            self.wrapped.learning_rate = value  # which says why not
        else:
            self._learning_rate.assign(RATE_FIELD.check("learning_rate", value))

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.wrapped.exclude_from_weight_decay(var_list, var_names)

    def scale_loss(self, loss: Any) -> Any:
        return self.wrapped.scale_loss(loss)

    # --- variables --------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        """iteration, learning_rate (unless scheduled) and the slots, in the order of Keras 3."""
        return [*self._variables]

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the slots. Variables with `overwrite_with_gradient` get none: they become what their gradient is."""
        if self.built:
            return
        variables = list(variables)
        overwritten = [v for v in variables if getattr(v, "overwrite_with_gradient", False)]
        if overwritten and self.wrapped.gradient_accumulation_steps:
            raise ValueError(
                "`gradient_accumulation_steps` does not go with variables that their gradients overwrite (of float8 "
                f"layers). Received: {[v.path for v in overwritten]}"
            )
        updated = [v for v in variables if not getattr(v, "overwrite_with_gradient", False)]
        self.wrapped.build(updated)
        if len(self.wrapped._paths) != len(updated):
            raise ValueError(
                f"{self.name} has slots for other variables too. Build it with all of them. It has: "
                f"{self.wrapped._paths}. Received: {[v.path for v in updated]}"
            )
        self._trainable_variables = variables
        self._trainable_variables_indices = {id(v): i for i, v in enumerate(variables)}
        self._list()
        self.built = True

    def _slots(self, name: str) -> list[Any]:
        keys = [self.wrapped._keys.get(id(v)) for v in self._trainable_variables]
        found = {spot.keys[1]: v for spot, v in self._known.items() if spot.keys[0] == "slots" and spot.keys[2] == name}
        if not found:
            raise AttributeError(f"{self.name} keeps no {name}")
        return [found.get(key) for key in keys]

    @property
    def _model_variables_moving_average(self) -> list[Any]:  # by this name SwapEMAWeights finds them
        return self._slots(AVERAGE)

    @property
    def _accumulated_gradients(self) -> list[Any]:
        return self._slots(SUM)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        self.wrapped.finalize_variable_values([v for v in var_list if id(v) in self.wrapped._keys])

    def get_weights(self) -> list[Any]:
        """The values of `variables`, as `set_weights` takes them."""
        return [v.numpy() for v in self.variables]

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
        return cls(**arguments_of(config, custom_objects))

    def __reduce__(self) -> Any:
        """A pickle or copy has the state, which waits for its variables: call `build` with them."""
        return around, (type(self), self.wrapped)


def around(cls: type[Adapter], optimizer: Optimizer) -> Any:
    """An adapter of class `cls` around an optimizer that exists."""
    adapter = cls.__new__(cls)
    adapter._wrap(optimizer, optimizer.name)
    return adapter
