"""Configs: the arguments of an optimizer's constructor as plain values."""

import dataclasses
import warnings
from typing import Any

from jaxopt_keras import schedules
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.language.options import EXTRAS, Options
from jaxopt_keras.language.rule import Rule, as_scalar
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.settings import RATE_FIELD
from jaxopt_keras.stateful.transactions import Transactions

DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options)}
# The keys of a Keras optimizer's config, in Keras's order.
KEYS = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency",
    "loss_scale_factor", "gradient_accumulation_steps",
)  # fmt: skip


class Configs(Transactions):
    """Configs of an optimizer: `get_config` and `from_config`."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a dict that JSON can hold; the state is not part of it.

        Keras's keys come first, in Keras's order, then other options that differ from their defaults. Functions
        (constraints, a callable rate or exclusion) are left out, with a warning.

        Raises:
            TypeError: for an optimizer of an optax transformation, which is code.
        """
        if isinstance(self._rule, Foreign):
            raise TypeError(f"{self.name} runs code that a config cannot hold. Pickle it, or construct it again.")
        config = {"name": self.name, "learning_rate": self._rate_config()}
        config |= {n: getattr(self._options, n) for n in KEYS}
        if isinstance(self._rule, Rule):
            config |= {
                f.name: _as_list(getattr(self._rule, f.name))
                for f in dataclasses.fields(self._rule)
                if f.name != "learning_rate" and (not f.kw_only or getattr(self._rule, f.name) != f.default)
            }
        defaults = DEFAULTS | getattr(self._rule, "defaults", {})
        for name in EXTRAS:
            value = getattr(self._options, name)
            if callable(value) or name == "constraints" and value:
                warnings.warn(f"`{name}` contains functions, which a config cannot hold. It is left out.", stacklevel=2)
            elif value != defaults[name]:
                config[name] = _as_list(value)
        return config

    def _rate_config(self) -> Any:
        """Return the config's `learning_rate`: a number, a schedule's config, or None."""
        if isinstance(self._rate_source, schedules.LearningRateSchedule):
            return schedules.serialize(self._rate_source)
        if self._rate_source is not None:
            warnings.warn("`learning_rate` is a function, which a config cannot hold. It is left out.", stacklevel=3)
            return None
        if "learning_rate" not in self._kept.hyperparams:
            return None
        present = float(self._kept.hyperparams["learning_rate"])
        given = self._rule.rate if isinstance(self._rule, Hooks) else self._rule.learning_rate
        return given if given is not None and present == float(as_scalar(RATE_FIELD, given)) else present

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """Return an optimizer with the arguments in `config`, which is not changed. `lr` means `learning_rate`."""
        return cls(**arguments_of(config, custom_objects))


def arguments_of(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> dict[str, Any]:
    """Return the constructor arguments in a config of this library or of any Keras version.

    Raises:
        TypeError: if `config` is not a dict.
    """
    if not isinstance(config, dict):
        raise TypeError(f"`config` must be a dict. Received: config={config!r}")
    arguments = dict(config)
    if "lr" in arguments:
        arguments["learning_rate"] = arguments.pop("lr")
    rate = arguments.pop("learning_rate", None)
    if rate is not None:
        arguments["learning_rate"] = schedules.deserialize(rate, custom_objects) if isinstance(rate, dict) else rate
    return arguments


def _as_list(value: Any) -> Any:
    """Convert a tuple to a list, as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
