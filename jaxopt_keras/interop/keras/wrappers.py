"""`as_keras`: any optimizer of this library as one of Keras's, wrappers and custom ones too."""

import warnings
from typing import Any

import keras
from keras.src.backend.common.global_state import get_global_attribute

from jaxopt_keras.interop.keras.adapter import Adapter, around
from jaxopt_keras.interop.keras.state import Spot
from jaxopt_keras.stateful.loss_scale import LossScaleOptimizer, scaled
from jaxopt_keras.stateful.multi import MultiOptimizer
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.serialization import deserialize, serialize
from jaxopt_keras.stateful.variable import value_of

NAMED: dict[type, type[Adapter]] = {}
"""The adapters of the named optimizers, by our class."""

CODE = (
    "{} runs code that a config cannot hold. Load the model with `compile=False`, compile it with the optimizer made "
    "anew, and restore its state with `save_weights` and `load_weights`."
)


@keras.saving.register_keras_serializable(package="jaxopt_keras")
class Wrapped(Adapter):
    """Any optimizer of this library. Made by `as_keras`."""

    def get_config(self) -> dict[str, Any]:
        """With the config of `wrapped`; without it, and with a warning, where that runs code, as optax's does."""
        try:
            return {"name": self.name, "optimizer": serialize(self.wrapped)}
        except TypeError:
            warnings.warn(CODE.format(self.name), stacklevel=2)
            return {"name": self.name, "optimizer": None}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        if config["optimizer"] is None:
            raise ValueError(CODE.format(config["name"]))
        return as_keras(deserialize(config["optimizer"], _registered() | (custom_objects or {})))


def _registered() -> dict[str, Any]:
    """The classes that Keras knows from `custom_objects` and from its decorator, by their own names."""
    known = keras.saving.get_custom_objects() | (get_global_attribute("custom_objects_scope_dict") or {})
    ours = "jaxopt_keras>"  # the adapters, whose configs these are not
    return {name.rpartition(">")[2]: x for name, x in known.items() if not name.startswith(ours)}


@keras.saving.register_keras_serializable(package="jaxopt_keras")
# Both bases have `from_config`, and Keras's has another signature.
class WrappedLossScale(Wrapped, keras.optimizers.LossScaleOptimizer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Our `LossScaleOptimizer`; one of Keras's too, so that mixed precision puts no other around it."""

    @property
    def inner_optimizer(self) -> Any:
        """What is inside, around the same state."""
        return _inside(self, self.wrapped.inner_optimizer)

    @property
    def dynamic_scale(self) -> Any:
        return self._known[Spot.of(self.wrapped.dynamic_scale.place)]

    @property
    def step_counter(self) -> Any:
        return self._known[Spot.of(self.wrapped.step_counter.place)]

    def scale_loss(self, loss: Any) -> Any:
        return scaled(value_of(loss), self.dynamic_scale.value)

    @property
    def iterations(self) -> Any:
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate
        self._list()


@keras.saving.register_keras_serializable(package="jaxopt_keras")
class WrappedMulti(Wrapped):
    """Our `MultiOptimizer`."""

    @property
    def optimizers(self) -> list[Any]:
        """What is inside, around the same state."""
        return [_inside(self, optimizer) for optimizer in self.wrapped.optimizers]

    @property
    def learning_rate(self) -> Any:
        return self.wrapped.learning_rate  # which says that there is none

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.wrapped.learning_rate = learning_rate


def _inside(outer: Adapter, optimizer: Optimizer) -> Any:
    adapter = as_keras(optimizer)
    if outer.built:
        adapter.build([v for v in outer._trainable_variables if id(v) in optimizer._keys])
    return adapter


def as_keras(optimizer: Optimizer) -> Any:
    """An optimizer of this library as a `keras.optimizers.Optimizer`, which `compile` takes.

    It is the same optimizer: what Keras trains moves its state, and `get_slot`, `iterations` and the rest show it.

    Args:
        optimizer: any: by name, from a rule, from optax, a subclass with hooks, `MultiOptimizer`, `LossScaleOptimizer`.

    >>> import keras, jaxopt_keras as jk
    >>> from jaxopt_keras.interop.keras import as_keras
    >>> optimizer = as_keras(jk.Optimizer.from_rule(jk.rules.SGD(0.5)))
    >>> w = keras.Variable([1.0, 2.0], name="w")
    >>> optimizer.apply_gradients([(keras.ops.ones(2), w)]).numpy()
    array(1, dtype=int32)
    >>> w.numpy()
    array([0.5, 1.5], dtype=float32)

    Raises:
        TypeError: if it is no `jaxopt_keras.Optimizer`.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "`optimizer` must be a `jaxopt_keras.Optimizer`. Received: optimizer="
            f"{optimizer!r}. For optax there is `jaxopt_keras.Optimizer.from_optax(tx)`."
        )
    kinds = {LossScaleOptimizer: WrappedLossScale, MultiOptimizer: WrappedMulti}
    found = NAMED.get(type(optimizer)) or next((a for k, a in kinds.items() if isinstance(optimizer, k)), Wrapped)
    return around(found, optimizer)
