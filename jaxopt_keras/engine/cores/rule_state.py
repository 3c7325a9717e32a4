"""The slots of one parameter by name, and the `State` of its rule."""

from typing import Any

from jaxopt_keras.engine.core import Slots
from jaxopt_keras.language.rule import Rule


def present(state: Any) -> Slots:
    """Return the fields that are not None, by name; {} for None."""
    return {} if state is None else {name: x for name, x in state._asdict().items() if x is not None}


def state_of(rule: Rule, slots: Slots) -> Any:
    """Return the rule's state of one array."""
    return rule.State(**{name: slots.get(name) for name in rule.State._fields})
