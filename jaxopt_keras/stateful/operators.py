"""Arithmetic with variables: operators take the arrays, and return arrays."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array


def _operators(names: str) -> list[Callable[..., Any]]:
    """Return methods that call the array's methods of these names, without their underscores."""
    return [_operator(f"__{name}__") for name in names.split()]


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        convert = value_of if name == "__getitem__" else _operand
        return in_tensor(getattr(value_of(self), name)(*map(convert, others)))

    return method


def _operand(x: Any) -> Any:
    """Return what arithmetic uses of an operand: in TensorFlow's hooks a list of arrays is an array."""
    is_list = isinstance(x, (list, tuple)) and _tensor.get() is not None
    return jnp.stack([jnp.asarray(value_of(y)) for y in x]) if is_list else value_of(x)


_tensor: contextvars.ContextVar[Callable[[Any], Any] | None] = contextvars.ContextVar("tensor", default=None)
"""The class that wraps the results of arithmetic with variables: in TensorFlow's hooks `Tensor`; None: no class."""


def in_tensor(x: Any) -> Any:
    """Return a result of arithmetic as the running code gets it."""
    wrap = _tensor.get()
    return x if wrap is None or not isinstance(x, Array) else wrap(x)


@contextlib.contextmanager
def results_in(wrap: Callable[[Any], Any] | None) -> Iterator[None]:
    """Wrap the results of arithmetic with variables."""
    token = _tensor.set(wrap)
    try:
        yield
    finally:
        _tensor.reset(token)


class Operators:
    """Python's operators for a class with an array as `value`."""

    value: Any

    __add__, __sub__, __mul__, __matmul__, __pow__ = _operators("add sub mul matmul pow")
    __radd__, __rsub__, __rmul__, __rmatmul__, __rpow__ = _operators("radd rsub rmul rmatmul rpow")
    __truediv__, __floordiv__, __mod__, __and__, __or__, __xor__ = _operators("truediv floordiv mod and or xor")
    __rtruediv__, __rfloordiv__, __rmod__, __rand__, __ror__, __rxor__ = _operators(
        "rtruediv rfloordiv rmod rand ror rxor"
    )
    __neg__, __pos__, __abs__, __invert__, __round__ = _operators("neg pos abs invert round")
    __lt__, __le__, __gt__, __ge__, __eq__, __ne__ = _operators("lt le gt ge eq ne")  # elementwise
    __getitem__, __len__, __iter__ = _operators("getitem len iter")
    __float__, __int__, __index__, __bool__, __format__ = _operators("float int index bool format")
    __hash__ = object.__hash__  # by identity


def value_of(x: Any) -> Any:
    """Return the array of a variable; return anything else unchanged."""
    while isinstance(x, Operators):  # in TensorFlow's hooks the value of a variable is a tensor
        x = x.value
    return x
