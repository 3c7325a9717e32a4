"""Conversion of schedules to plain dictionaries, and back."""

from collections.abc import Mapping
from typing import Any

from jaxopt_keras.schedules import composed, cosine, decays, warmups  # noqa: F401  # they define the subclasses of `BuiltIn`
from jaxopt_keras.schedules.base import LearningRateSchedule
from jaxopt_keras.schedules.builtin import BuiltIn

PACKAGE = __name__.rpartition(".")[0]
CLASSES: dict[str, type[LearningRateSchedule]] = {kind.__name__: kind for kind in BuiltIn.__subclasses__()}


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """Convert a schedule to a dict that can be saved as JSON, in Keras's layout; `deserialize` reads it.

    Raises:
        TypeError: if `schedule` is a plain function, which has no config.

    >>> from jaxopt_keras.schedules import InverseSqrtDecay
    >>> serialize(InverseSqrtDecay(1.0, 100))["class_name"]
    'InverseSqrtDecay'
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(
            "`schedule` must be a `LearningRateSchedule` to be serialized: make your function the `__call__` of a "
            f"subclass that defines `get_config`. Received: schedule={schedule!r}"
        )
    kind = type(schedule)
    config = schedule.get_config()
    module = PACKAGE if kind in CLASSES.values() else kind.__module__
    return {"module": module, "class_name": kind.__name__, "config": config, "registered_name": None}


def is_config(value: Any, custom_objects: Mapping[str, Any] | None = None) -> bool:
    """Whether a value is the dict of a schedule, built in or of `custom_objects`."""
    name = value.get("class_name") if isinstance(value, Mapping) else None
    kind = {**CLASSES, **(custom_objects or {})}.get(name or "")
    return isinstance(kind, type) and issubclass(kind, LearningRateSchedule)


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> LearningRateSchedule:
    """Return the schedule of a dict that `serialize`, or Keras's `serialize`, made; `config` is not changed.

    Args:
        config: `{"class_name": ..., "config": {...}}`; other keys are optional.
        custom_objects: your own classes by name; they have precedence.

    Raises:
        TypeError: if `config` is not such a dict. ValueError: if its class is neither built in nor in `custom_objects`.

    >>> deserialize({"class_name": "InverseSqrtDecay", "config": {"peak_learning_rate": 1, "warmup_steps": 100}})
    InverseSqrtDecay(peak_learning_rate=1.0, warmup_steps=100)
    """
    if not (isinstance(config, Mapping) and isinstance(config.get("class_name"), str)):
        raise TypeError(f"`config` must be a dict with `class_name` and `config`. Received: config={config!r}")
    name, module = config["class_name"], config.get("module") or PACKAGE
    custom = custom_objects or {}
    kind = custom.get(config.get("registered_name") or name) or custom.get(name)
    # A class of another module may have the name of a built-in one. Those of Keras and tf_keras are the same schedules.
    if kind is None and module.endswith((PACKAGE, "keras.optimizers.schedules")):
        kind = CLASSES.get(name)
    if kind is None:
        raise ValueError(
            f"`config` must describe one of {list(CLASSES)}, or a class that you pass: "
            f"`custom_objects={{{name!r}: {name}}}`. Received: class_name={name!r}, module={module!r}"
        )
    return kind.from_config(dict(config.get("config") or {}))
