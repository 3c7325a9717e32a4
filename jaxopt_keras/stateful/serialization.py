"""Optimizers as plain dictionaries and back, and optimizers by name."""

import dataclasses
from typing import Any

from jaxopt_keras.language.rule import RATE, Rule
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS, MORE_CLASSES
from jaxopt_keras.stateful.configs import arguments_of, without_exclusion
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.variable import check

WRAPPERS: dict[str, Any] = {}  # classes around other optimizers, by name; each module adds its own
NAMED = CLASSES | MORE_CLASSES
_LIBRARIES = ("jaxopt_keras", "keras", "tf_keras")  # libraries whose optimizers have the names and settings of ours


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """Return `{"module", "class_name", "config", "registered_name"}`, from which `deserialize` makes an optimizer.

    >>> import jaxopt_keras as jk
    >>> jk.serialize(jk.SGD(0.5))["config"]["learning_rate"]
    0.5

    Raises:
        TypeError: if `optimizer` is not an optimizer, or runs code that a config cannot hold.
    """
    check(isinstance(optimizer, Optimizer), "optimizer", optimizer, "an `Optimizer`")
    config = optimizer.get_config()
    is_rule = type(optimizer) is Optimizer and isinstance(optimizer._rule, Rule)  # created by `from_rule`
    cls = type(optimizer._rule) if is_rule else type(optimizer)
    module = NAMED[cls.__name__].__module__ if cls.__module__.startswith("jaxopt_keras.rules") else cls.__module__
    return {"module": module, "class_name": cls.__name__, "config": config, "registered_name": None}


def deserialize(config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Optimizer:
    """Make an optimizer from a config of this library or of Keras. `config` is not changed.

    Args:
        config: a dict from `serialize`, or `{"class_name", "config"}`.
        custom_objects: other classes of optimizers, rules and schedules, by name.

    Raises:
        TypeError: if `config` is not such a dict. ValueError: if the class is unknown.
    """
    named = isinstance(config, dict) and isinstance(config.get("class_name"), str)
    check(named, "config", config, 'a dict with a "class_name"')
    cls = _class(config["class_name"], config.get("module"), custom_objects or {})
    settings = config.get("config") or {}
    if not issubclass(cls, Rule):
        return cls.from_config(settings, custom_objects)
    settings, excluded = without_exclusion(settings)
    arguments = arguments_of(settings, custom_objects)
    own = {f.name: arguments.pop(f.name) for f in dataclasses.fields(cls) if f.name in arguments}
    rule = cls(**own)
    if RATE in arguments:  # of a modifier: the rate of the rule inside
        rule = rule.replaced(learning_rate=arguments.pop(RATE))
    optimizer = Optimizer.from_rule(rule, **arguments)
    optimizer._exclude_again(excluded)
    return optimizer


def get(identifier: Any) -> Any:
    """Return an optimizer for a name (in any case), a config or a rule; return an optimizer and None unchanged.

    >>> get("lamb").get_config()["learning_rate"]
    0.001

    Raises:
        ValueError: for an unknown name. TypeError: for anything else.
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
    """Return the class of a name: of `custom_objects`, or of this library if `module` is compatible."""
    check(isinstance(custom_objects, dict), "custom_objects", custom_objects, "a dict of classes by name")
    if name in custom_objects:
        return custom_objects[name]
    known = {cls.lower(): value for cls, value in (NAMED | WRAPPERS).items()}
    known |= zip(FUNCTIONS, CLASSES.values(), strict=True)  # schedule_free_adamw
    package, _, short = name.rpartition(">")  # registered with Keras as "package>name"
    ours = (module or "keras").split(".")[0] in _LIBRARIES and package in ("", "jaxopt_keras")
    if not ours or short.lower() not in known:
        of = f" of module {module!r}" if module else ""
        raise ValueError(
            f"There is no optimizer `{name}`{of}. Known: {sorted(CLASSES)}. Pass your own class: "
            f"`custom_objects={{{name!r}: {short}}}`."
        )
    return known[short.lower()]
