"""An optimizer's config: the arguments that make it anew, as plain values."""

import dataclasses
import warnings
from typing import Any

from jaxopt_keras import schedules
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.language.options import EXTRAS, Options
from jaxopt_keras.language.rule import Rule, as_scalar
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.settings import RATE_FIELD

DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options)}
# Keras's, in its order.
KEYS = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency",
    "loss_scale_factor", "gradient_accumulation_steps",
)  # fmt: skip


class Configs:
    """The means of configs, for `Optimizer`."""

    name: str
    _state: Any
    _kept: Any
    _rule: Any
    _rate_source: Any
    _options: Options

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this optimizer anew, without its state; JSON takes it.

        Keras's keys in Keras's order; then ours, where they are not at their defaults. Functions (constraints, a
        callable rate or exclusion) cannot be written down and are left out, with a warning.
        """
        if isinstance(self._rule, Foreign):
            raise TypeError(f"{self.name} runs code that a config cannot hold. Pickle it, or make it anew.")
        config = {"name": self.name, "learning_rate": self._rate_config()}
        config |= {n: getattr(self._options, n) for n in KEYS}
        if isinstance(self._rule, Rule):
            config |= {
                f.name: _listed(getattr(self._rule, f.name))
                for f in dataclasses.fields(self._rule)
                if f.name != "learning_rate" and (not f.kw_only or getattr(self._rule, f.name) != f.default)
            }
        defaults = DEFAULTS | getattr(self._rule, "defaults", {})
        for name in EXTRAS:
            value = getattr(self._options, name)
            if callable(value) or name == "constraints" and value:
                warnings.warn(f"`{name}` holds functions, which a config cannot: it is left out.", stacklevel=2)
            elif value != defaults[name]:
                config[name] = _listed(value)
        return config

    def _rate_config(self) -> Any:
        if isinstance(self._rate_source, schedules.LearningRateSchedule):
            return schedules.serialize(self._rate_source)
        if self._rate_source is not None:
            warnings.warn("`learning_rate` is a function, which a config cannot hold: it is left out.", stacklevel=3)
            return None
        if "learning_rate" not in self._kept.hyperparams:
            return None
        now = float(self._kept.hyperparams["learning_rate"])
        given = self._rule.rate if isinstance(self._rule, Hooks) else self._rule.learning_rate
        return given if given is not None and now == float(as_scalar(RATE_FIELD, given)) else now

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """The optimizer of `get_config`; `config` does not change. TF's `lr` is understood as `learning_rate`."""
        return cls(**arguments_of(config, custom_objects))


def arguments_of(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments that a config, of ours or of any Keras, stands for."""
    if not isinstance(config, dict):
        raise TypeError(f"`config` must be a dict. Received: config={config!r}")
    arguments = dict(config)
    if "lr" in arguments:
        arguments["learning_rate"] = arguments.pop("lr")
    rate = arguments.pop("learning_rate", None)
    if rate is not None:
        arguments["learning_rate"] = schedules.deserialize(rate, custom_objects) if isinstance(rate, dict) else rate
    return arguments


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
