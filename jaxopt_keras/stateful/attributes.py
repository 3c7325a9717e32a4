"""The attributes that the parts of an optimizer share."""

from collections.abc import Callable
from typing import Any

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
    _rule: Any
    _rate_source: Any  # a schedule, or a function without arguments; None: the number in state.hyperparams
    _rate_config: Callable[[], Any]
    _configure_rate: Callable[[Any], Any]
    _options: Options
    _excluded: Any
    _paths: list[str]
    _handles: dict[str, Handle]
    _keys: dict[int, str]
    _unbound: dict[str, tuple[int, ...]]
    _custom_names: list[str]
    _kernel_cache: Any  # the kernel, or None; of a wrapper the kernels by those of its groups
    _handle: Callable[[Any], Handle]
    _key: Callable[[Any], str]
    _register: Callable[[list[Any]], list[str]]
