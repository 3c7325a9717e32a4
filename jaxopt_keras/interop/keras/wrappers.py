"""`as_keras`: adapts any optimizer of this library to Keras, wrappers and custom optimizers too."""

import warnings
from typing import Any

import keras
from keras.src.backend.common.global_state import get_global_attribute

from jaxopt_keras.interop.keras.adapter import Adapter, adapter_of
from jaxopt_keras.interop.keras.state import Address
from jaxopt_keras.stateful.custom.overrides import overrides
from jaxopt_keras.stateful.loss_scale import LossScaleOptimizer, scaled
from jaxopt_keras.stateful.multi import MultiOptimizer
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.serialization import deserialize, serialize
from jaxopt_keras.stateful.variable import value_of

NAMED: dict[type, type[Adapter]] = {}
"""The adapter classes of the named optimizers, by stateful class."""

NOT_ADAPTED = {
    "stateless_apply": "override `apply`, which it calls",
    "variables": "keep variables in attributes, which makes them part of the state",
}

CODE = (
    "{} runs code that a config cannot contain. Load the model with `compile=False`, compile it with a new optimizer, "
    "and restore the state with `save_weights` and `load_weights`."
)


@keras.saving.register_keras_serializable(package="jaxopt_keras")
class Wrapped(Adapter):
    """The adapter of any optimizer of this library. `as_keras` makes it."""

    def get_config(self) -> dict[str, Any]:
        """The config, with that of `wrapped`. It is left out, with a warning, if `wrapped` runs code (optax)."""
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
    """The classes registered in Keras, by `custom_objects` or by decorator, under their class names."""
    known = keras.saving.get_custom_objects() | (get_global_attribute("custom_objects_scope_dict") or {})
    ours = "jaxopt_keras>"  # adapters: the configs are those of wrapped optimizers
    return {name.rpartition(">")[2]: x for name, x in known.items() if not name.startswith(ours)}


@keras.saving.register_keras_serializable(package="jaxopt_keras")
# Both bases have `from_config`, with different signatures.
# Two base classes, each with Keras's methods: `Wrapped` comes first, and its methods run.
class WrappedLossScale(Wrapped, keras.optimizers.LossScaleOptimizer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The adapter of a `LossScaleOptimizer`. Derived from Keras's, so that mixed precision does not wrap it again."""

    @property
    def inner_optimizer(self) -> Any:
        """The adapter of the inner optimizer, with the same state."""
        return _inside(self, self.wrapped.inner_optimizer)

    @property
    def dynamic_scale(self) -> Any:
        return self._known[Address.of(self.wrapped.dynamic_scale)]

    @property
    def step_counter(self) -> Any:
        return self._known[Address.of(self.wrapped.step_counter)]

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
        self._list_variables()


@keras.saving.register_keras_serializable(package="jaxopt_keras")
class WrappedMulti(Wrapped):
    """The adapter of a `MultiOptimizer`."""

    @property
    def optimizers(self) -> list[Any]:
        """The adapters of the inner optimizers, with the same state."""
        return [_inside(self, optimizer) for optimizer in self.wrapped.optimizers]

    @property
    def learning_rate(self) -> Any:
        return self.wrapped.learning_rate  # raises: the groups have rates of their own

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.wrapped.learning_rate = learning_rate


def _inside(outer: Adapter, optimizer: Optimizer) -> Any:
    adapter = as_keras(optimizer)
    if outer.built:
        adapter.build([v for v in outer._trainable_variables if id(v) in optimizer._keys])
    return adapter


def as_keras(optimizer: Optimizer) -> Any:
    """Adapts an optimizer of this library to a `keras.optimizers.Optimizer`, for `compile`.

    Both share one state: training in Keras also changes the `iterations` and slots of `optimizer`.

    Args:
        optimizer: any `jaxopt_keras.Optimizer`: named, from a rule, from optax, a subclass with hooks, a
            `MultiOptimizer` or a `LossScaleOptimizer`.

    >>> import keras, jaxopt_keras as jk
    >>> from jaxopt_keras.interop.keras import as_keras
    >>> optimizer = as_keras(jk.Optimizer.from_rule(jk.rules.SGD(0.5)))
    >>> w = keras.Variable([1.0, 2.0], name="w")
    >>> optimizer.apply_gradients([(keras.ops.ones(2), w)]).numpy()
    array(1, dtype=int32)
    >>> w.numpy()
    array([0.5, 1.5], dtype=float32)

    Raises:
        TypeError: if `optimizer` is none, or its class overrides `stateless_apply` or `variables`.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "`optimizer` must be a `jaxopt_keras.Optimizer`. Received: optimizer="
            f"{optimizer!r}. For optax use `jaxopt_keras.Optimizer.from_optax(tx)`."
        )
    for name, instead in NOT_ADAPTED.items():
        if overrides(type(optimizer), name):
            cls = type(optimizer).__name__
            raise TypeError(f"`{name}` of {cls} would never be called in Keras. Instead: {instead}.")
    kinds = {LossScaleOptimizer: WrappedLossScale, MultiOptimizer: WrappedMulti}
    found = NAMED.get(type(optimizer)) or next((a for k, a in kinds.items() if isinstance(optimizer, k)), Wrapped)
    return adapter_of(found, optimizer)
