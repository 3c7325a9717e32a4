"""Configs: optimizers as plain dictionaries, by name and back."""

import dataclasses
from typing import Any

from jaxopt_keras.language.rule import Rule
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS
from jaxopt_keras.stateful.configs import arguments_of
from jaxopt_keras.stateful.optimizer import Optimizer

WRAPPERS: dict[str, Any] = {}  # classes made of optimizers, by name; they enter themselves
_LIBRARIES = ("jaxopt_keras", "keras", "tf_keras")  # whose optimizers are ours, by name and by settings


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """`{"module", "class_name", "config", "registered_name"}`, which `deserialize` turns back into an optimizer.

    >>> import jaxopt_keras as jk
    >>> jk.serialize(jk.SGD(0.5))["config"]["learning_rate"]
    0.5

    Raises:
        TypeError: if it is no optimizer, or one that runs code which a config cannot hold.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be an `Optimizer`. Received: optimizer={optimizer!r}")
    config = optimizer.get_config()
    of_rule = type(optimizer) is Optimizer and isinstance(optimizer._rule, Rule)  # made by `from_rule`
    cls = type(optimizer._rule) if of_rule else type(optimizer)
    module = CLASSES[cls.__name__].__module__ if cls.__module__.startswith("jaxopt_keras.rules") else cls.__module__
    return {"module": module, "class_name": cls.__name__, "config": config, "registered_name": None}


def deserialize(config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Optimizer:
    """The optimizer of a config, of ours or of Keras's; `config` does not change.

    Args:
        config: of `serialize`, or `{"class_name", "config"}`.
        custom_objects: classes of optimizers, rules and schedules by name, where they are not ours.

    Raises:
        TypeError: if it is no config. ValueError: if the class is not known.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise TypeError(f'`config` must be a dict with a "class_name". Received: config={config!r}')
    cls = _class(config["class_name"], config.get("module"), custom_objects or {})
    settings = config.get("config") or {}
    if not issubclass(cls, Rule):
        return cls.from_config(settings, custom_objects)
    arguments = arguments_of(settings, custom_objects)
    own = {f.name: arguments.pop(f.name) for f in dataclasses.fields(cls) if f.name in arguments}
    return Optimizer.from_rule(cls(**own), **arguments)


def get(identifier: Any) -> Any:
    """An optimizer from its name (in any case), its config, or itself; None stays None.

    >>> get("lamb").get_config()["learning_rate"]
    0.001

    Raises:
        ValueError: for a name that is not known. TypeError: for anything else.
    """
    if identifier is None or isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, Rule):
        return Optimizer.from_rule(identifier)
    if isinstance(identifier, str):
        return _class(identifier, None, {})()
    raise TypeError(
        "`identifier` must be a name, a config, an `Optimizer` or a `Rule`. Received: "
        f"identifier={identifier!r} ({type(identifier).__name__})"
    )


def _class(name: str, module: str | None, custom_objects: dict[str, Any]) -> Any:
    if not isinstance(custom_objects, dict):
        raise TypeError(f"`custom_objects` must be a dict of classes by name. Received: {custom_objects!r}")
    if name in custom_objects:
        return custom_objects[name]
    known = {cls.lower(): value for cls, value in (CLASSES | WRAPPERS).items()}
    known |= {f: cls for f, cls in zip(FUNCTIONS, CLASSES.values(), strict=True)}  # schedule_free_adamw
    package, _, short = name.rpartition(">")  # registered with Keras as "package>name"
    ours = (module or "keras").split(".")[0] in _LIBRARIES and package in ("", "jaxopt_keras")
    if not ours or short.lower() not in known:
        of = f" of module {module!r}" if module else ""
        raise ValueError(
            f"There is no optimizer `{name}`{of}. There are {sorted(CLASSES)}; pass your own: "
            f"`custom_objects={{{name!r}: {short}}}`."
        )
    return known[short.lower()]
