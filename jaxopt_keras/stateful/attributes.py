"""The attributes that the parts of an optimizer share."""

from collections.abc import Callable
from typing import Any

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.stateful.variable_kinds import Handle


class Attributes:
    """Declarations for the parts of `Optimizer`; `Registry._init_attributes` sets and explains the attributes."""

    name: str
    built: bool
    learning_rate: Any
    view: Callable[[Any], Any]
    build: Callable[[Any], None]
    apply_gradients: Callable[..., Any]
    _state: Any
    _put: Callable[[Any], None]
    _kept: State
    _rule: Any
    _rate_source: Any
    _rate_config: Callable[[], Any]
    _configure_rate: Callable[[Any], Any]
    _options: Options
    _excluded: Any
    _paths: list[str]
    _handles: dict[str, Handle]
    _keys: dict[int, str]
    _unbound: dict[str, tuple[int, ...]]
    _custom_names: list[str]
    _kernel_cache: Any
    _key: Callable[[Any], str]
    _register: Callable[[list[Any]], list[str]]
