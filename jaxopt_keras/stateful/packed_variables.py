"""Packed variables: one buffer for each dtype, so that an optimizer steps over one array instead of thousands.

A buffer is itself a variable. Reading one of its variables slices the buffer and caches the slice until the buffer is
replaced. Assigned values are kept next to the buffer and written into it when it is read. So a step, which replaces the
buffer, does no work for single variables.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.packing.trees import Packed, pack
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.variable import ArrayLike, Variable, check_iterable


class Buffer(ArrayLike):
    """A flat variable that holds the arrays of variables of one dtype. `pack_variables` makes it."""

    trainable = True
    constraint = None  # constraints of the packed variables are found on these variables

    @locked
    def __init__(self, variables: Sequence[Variable], path: str) -> None:
        self.path, self.name, self.variables = path, path.rsplit("/", 1)[-1], tuple(variables)
        packed = pack([jnp.copy(v.value) for v in variables])  # copies: a step donates the buffer
        ((self._dtype, self._array),) = packed.buffers.items()
        self._arrangement = packed.arrangement
        self.parts = {id(v): part._replace(path=v.path) for v, part in zip(variables, packed.parts, strict=True)}
        self._cache: dict[int, Array] = {}  # id of a variable -> its array: sliced from the buffer, or assigned
        self._pending: set[int] = set()  # ids of assigned variables that `_array` does not contain yet
        for v in variables:
            v.pack_into(self)

    def read_slice(self, variable: Any) -> Array:
        """Return the array of one of the variables."""
        key = id(variable)
        if key not in self._cache:
            with jax.ensure_compile_time_eval():  # a cached array must not be traced
                self._cache[key] = self.parts[key].read(self._array)
        return self._cache[key]

    def write_slice(self, variable: Any, value: Array) -> None:
        """Assign one of the variables."""
        self._cache[id(variable)] = value
        self._pending.add(id(variable))

    def split(self, packed: Array) -> dict[int, Array]:
        """Split the buffer's array, which may be traced, into the variables' arrays, by the variables' ids."""
        return dict(zip(self.parts, self._packed(packed).unpack(), strict=True))

    def _packed(self, array: Array) -> Packed:
        return Packed({self._dtype: array}, [], self._arrangement)

    def _raw_value(self) -> Array:
        if self._pending:
            with jax.ensure_compile_time_eval():
                self._write_pending()
        return self._array

    def _write_pending(self) -> None:
        """Write assigned values into the buffer."""
        if len(self._pending) == len(self.parts):
            self._array = self._packed(self._array).like([self._cache[key] for key in self.parts]).buffers[self._dtype]
        else:
            array = jnp.copy(self._array)  # writes below are in place, and callers may hold the old array
            for key in self._pending:
                array = self.parts[key].write(array, self._cache[key], donate=True)
            self._array = array  # stored once: an interrupt before this line loses nothing
        self._pending.clear()

    def _store(self, value: Array) -> None:
        self._array = value
        self._cache.clear()
        self._pending.clear()

    def __reduce__(self) -> Any:  # a copy of the buffer packs copies of the variables
        return Buffer, (self.variables, self.path)


def pack_variables(variables: Sequence[Variable]) -> list[Buffer]:
    """Pack variables into one buffer for each dtype. A step over a thousand variables then costs as much as over one.

    The buffers are variables: take gradients with respect to them, and pass them to the optimizer. The packed variables
    can be read and assigned as before, and their values stay valid.

    Args:
        variables: `jaxopt_keras.Variable`s of floats or complex numbers that are not packed yet.

    Returns:
        The buffers, in the order in which their dtypes first occur; their paths are `packed/float32` and so on.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> w, b = jk.Variable([1.0, 2.0], name="w"), jk.Variable(3.0, name="b")
    >>> packed = jk.pack_variables([w, b])
    >>> value, grads = jk.value_and_grad(lambda x: jnp.sum(w.value * x) + b.value, packed, jnp.array([3.0, 4.0]))
    >>> grads[0].tolist()
    [3.0, 4.0, 1.0]
    >>> optimizer = jk.SGD(0.5)
    >>> optimizer.apply_gradients(zip(grads, packed)).numpy().tolist(), w.numpy().tolist(), float(b)
    (1, [-0.5, 0.0], 2.5)

    An elementwise rule runs on the buffers themselves, and its slots are buffers too; `get_slot` of a packed variable
    returns a view of its range. Norms, `clipnorm` and constraints depend on the boundaries between variables: with them
    the optimizer unpacks the buffers and updates each variable separately. The gradient of a packed variable that the
    loss does not read is 0, not None.

    Raises:
        TypeError: if one is not a `jaxopt_keras.Variable`, or is of integers. ValueError: if one occurs twice, or is
            packed already.
    """
    variables = list(check_iterable("variables", variables))
    seen: set[int] = set()
    groups: dict[str, list[Variable]] = {}
    for v in variables:
        if not isinstance(v, Variable):
            raise TypeError(
                "`variables` must be `jaxopt_keras.Variable`s: variables of other libraries cannot share a "
                f"buffer. Received: {type(v).__module__}.{type(v).__name__} among them"
            )
        if not jnp.issubdtype(v.dtype, jnp.inexact):
            raise TypeError(
                f"`variables` must be of floats or complex numbers. Received: `{v.path}` of dtype {v.dtype}"
            )
        if id(v) in seen:
            raise ValueError(f"Each variable may occur once. Received: `{v.path}` twice")
        if v.buffer is not None:
            raise ValueError(f"`{v.path}` is packed in `{v.buffer.path}` already: use that buffer.")
        seen.add(id(v))
        groups.setdefault(str(v.dtype), []).append(v)
    return [Buffer(group, f"packed/{dtype}") for dtype, group in groups.items()]
