"""The config of an optimizer: its constructor's arguments, as a dict that JSON can hold."""

import dataclasses
import warnings
from typing import Any

from jax.core import Tracer

from jaxopt_keras import rules, schedules
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.language.fields import RATE as RATE_NAME
from jaxopt_keras.language.options import EXTRAS, Options
from jaxopt_keras.language.rule import Field, Rate, Rule, as_scalar
from jaxopt_keras.rules import modifiers
from jaxopt_keras.schedules.configs import is_config
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.transactions import OPTIONS, Transactions
from jaxopt_keras.stateful.variable import check

RATE_FIELD = Field.read(Rate)
WINDOW = "gradient_accumulation_steps"
INNER = "inner"  # the field of a modifier with the rule inside
EXCLUDED = "excluded_from_weight_decay"  # the key of the arguments of `exclude_from_weight_decay`
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options)}
# The keys of a Keras optimizer's config, in Keras's order.
KEYS = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency",
    "loss_scale_factor", WINDOW,
)  # fmt: skip


class Configs(Transactions):
    """Configs of optimizers."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a dict that JSON can hold; the state is not part of it.

        Keras's keys come first, in Keras's order, then other options that differ from their defaults, and what
        `exclude_from_weight_decay` excluded, by name and path. Functions (constraints, a callable rate or exclusion)
        are left out, with a warning.

        Raises:
            TypeError: for an optimizer of an optax transformation, which is code.
        """
        if isinstance(self._rule, Foreign):
            raise TypeError(f"{self.name} runs code that a config cannot hold. Pickle it, or construct it again.")
        config = {"name": self.name, "learning_rate": self._rate_config()}
        config |= {n: getattr(self._options, n) for n in KEYS}
        config |= {} if self.jit_compile else {"jit_compile": False}
        if callable(length := self._options.gradient_accumulation_steps):
            config[WINDOW] = schedule_config(WINDOW, length)
        if isinstance(self._rule, Rule):
            rule, _ = self._with_functions()
            config |= {n: x for n, x in rule_config(rule)["config"].items() if n != RATE_NAME}
        defaults = DEFAULTS | getattr(self._rule, "defaults", {})
        for name in EXTRAS:
            value = getattr(self._options, name)
            if callable(value) or name == "constraints" and value:
                warnings.warn(f"`{name}` contains functions, which a config cannot hold. It is left out.", stacklevel=2)
            elif value != defaults[name]:
                config[name] = _as_list(value)
        for name in self._sources.functions.keys() & OPTIONS.keys():
            config.pop(name, None)
            if (schedule := self._source_config(name)) is not None:
                config[name] = schedule
        excluded = self._portable_exclusion()
        if excluded.patterns or excluded.paths:
            config[EXCLUDED] = {"var_names": [*excluded.patterns], "paths": sorted(excluded.paths)}
        return config

    def _source_config(self, name: str) -> Any:
        """Return the config of a schedule, or None, with a warning, for another function."""
        return schedule_config(name, self._sources.get(name))

    def _rate_config(self) -> Any:
        """Return the config's `learning_rate`: a number, a schedule's config, or None."""
        if RATE_NAME in self._sources:
            return self._source_config(RATE_NAME)
        if "learning_rate" not in self._kept.hyperparams:
            return None
        return self._rate_given()

    def _rate_given(self) -> float:
        """Return the rate as a Python number: the one that was set, if the state still has it."""
        given = self._rule.rate if isinstance(self._rule, Hooks) else self._rule.learning_rate
        present = self._kept.hyperparams["learning_rate"]
        if isinstance(present, Tracer) or present.is_deleted():
            return given
        return given if given is not None and float(present) == float(as_scalar(RATE_FIELD, given)) else float(present)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """Return an optimizer with the arguments in `config`, which is not changed. `lr` means `learning_rate`."""
        config, excluded = without_exclusion(config)
        arguments = arguments_of(config, custom_objects)
        compiles = arguments.pop("jit_compile", None)  # not every class has this argument
        optimizer = cls(**arguments)
        optimizer._exclude_again(excluded)
        if compiles is not None:
            optimizer.jit_compile = compiles
        return optimizer


def without_exclusion(config: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return a config without the entry of `exclude_from_weight_decay`, and this entry, or None."""
    if not isinstance(config, dict) or EXCLUDED not in config:
        return config, None
    return {name: x for name, x in config.items() if name != EXCLUDED}, config[EXCLUDED]


def schedule_config(name: str, function: Any) -> Any:
    """Return the config of a schedule, or None, with a warning, for another function."""
    if isinstance(function, schedules.LearningRateSchedule):
        return schedules.serialize(function)
    warnings.warn(f"`{name}` is a function, which a config cannot hold. It is left out.", stacklevel=5)
    return None


def rule_config(rule: Rule) -> dict[str, Any]:
    """Return the config of a rule, from which `rule_from` makes it: its class and its arguments."""
    config: dict[str, Any] = {}
    for f in dataclasses.fields(rule):
        value = getattr(rule, f.name)
        if f.kw_only and value == f.default:
            continue
        if isinstance(value, Rule):
            config[f.name] = rule_config(value)
        elif not callable(value):
            config[f.name] = _as_list(value)
        elif f.name != RATE_NAME and (schedule := schedule_config(f.name, value)) is not None:
            config[f.name] = schedule
    return {"module": type(rule).__module__, "class_name": type(rule).__name__, "config": config}


def rule_from(config: Any, custom_objects: dict[str, Any] | None) -> Any:
    """Return the rule of a config from `rule_config`.

    Raises:
        ValueError: if its class is unknown.
    """
    known = {n: x for n, x in (vars(rules) | vars(modifiers)).items() if isinstance(x, type) and issubclass(x, Rule)}
    known |= custom_objects or {}
    name = config.get("class_name") if isinstance(config, dict) else config
    if name not in known:
        raise ValueError(
            f"There is no rule `{name}`. Pass your own class: `custom_objects={{{name!r}: {name}}}`. Known: {[*known]}"
        )
    return known[name](**arguments_of(config.get("config") or {}, custom_objects))


def arguments_of(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> dict[str, Any]:
    """Return the constructor arguments in a config of this library or of any Keras version.

    Raises:
        TypeError: if `config` is not a dict.
    """
    check(isinstance(config, dict), "config", config, "a dict")
    arguments = dict(config)
    if "lr" in arguments:
        arguments["learning_rate"] = arguments.pop("lr")
    if arguments.get(RATE_NAME, 0) is None:
        del arguments[RATE_NAME]
    for name, value in arguments.items():
        is_rule = isinstance(value, dict) and str(value.get("module")).startswith(rules.__name__)
        if is_rule or (name == INNER and isinstance(value, dict)):
            arguments[name] = rule_from(value, custom_objects)
        elif name == RATE_NAME and isinstance(value, dict) or is_config(value, custom_objects):
            arguments[name] = schedules.deserialize(value, custom_objects)
    return arguments


def _as_list(value: Any) -> Any:
    """Convert tuples to lists, as JSON has them."""
    return [_as_list(x) for x in value] if isinstance(value, tuple) else value
