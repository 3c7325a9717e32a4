"""Validation of arguments that must be kernels."""

from typing import Any

from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel


def check_kernel(name: str, value: Any, pattern: str | None = None) -> Kernel:
    """Return the argument `name`, or its value at `pattern`, if it is a kernel.

    Raises:
        TypeError: if it is not. For an optimizer of another kind it says how to make a kernel.
    """
    if isinstance(value, Kernel):
        return value
    expected, given = "be a kernel", f"{name}={value!r}"
    if pattern is not None:
        expected, given = "map patterns to kernels", f"{pattern!r}: {value!r}"
    if hasattr(value, "apply_gradients"):
        hint = ". That is an optimizer of the stateful face; kernels are made by functions, in lower case."
    elif isinstance(value, Rule):
        hint = ". Wrap a rule: `jaxopt_keras.Kernel(rule)`."
    elif hasattr(value, "init") and hasattr(value, "update"):
        hint = ". Wrap an optax transformation: `jaxopt_keras.Kernel.from_optax(tx)`."
    else:
        hint = ""
    raise TypeError(f"`{name}` must {expected}, such as `jaxopt_keras.adam()`. Received: {given}{hint}")
