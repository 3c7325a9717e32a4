"""Variables that lie in one buffer: to an optimizer, a thousand tiny ones are then one.

A buffer is a variable itself. A variable in it is cut out when it is read, and kept until the buffer moves; what it is
assigned is put in when the buffer is read. A step, which moves the buffer, so does nothing for the single variables.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.packing.trees import concatenate, unpack_buffer
from jaxopt_keras.stateful.variable import ArrayLike, Variable, several


class Piece(NamedTuple):
    """Where a variable lies in its buffer."""

    path: str
    offset: int
    shape: tuple[int, ...]

    def of(self, whole: Array) -> Array:
        """What lies there, as an array of its own."""
        return _sliced(whole, self.offset, self.shape)

    def put(self, whole: Array, value: Array) -> Array:
        """`whole` with `value` there."""
        return jax.lax.dynamic_update_slice(whole, jnp.ravel(value), (self.offset,))


class Buffer(ArrayLike):
    """Variables of one dtype as one flat variable. `pack_variables` makes them."""

    trainable = True
    constraint = None  # those of its variables are another matter

    def __init__(self, variables: Sequence[Variable], path: str) -> None:
        self.path, self.name, self.variables = path, path.rsplit("/", 1)[-1], tuple(variables)
        values = [v.value for v in variables]
        sizes = [math.prod(x.shape) for x in values]
        offsets = itertools.accumulate(sizes[:-1], initial=0)
        self.sizes = tuple(sizes)
        self.pieces = {
            id(v): Piece(v.path, offset, x.shape) for v, offset, x in zip(variables, offsets, values, strict=True)
        }
        self._whole = concatenate([jnp.array(x, copy=True).reshape(-1) for x in values])
        self._arrays: dict[int, Array] = {}  # by a variable's id: cut out, or assigned, since the last move
        self._late: set[int] = set()  # those of them that the whole does not hold yet
        for v in variables:
            v.pack_into(self)

    def piece(self, variable: Any) -> Array:
        """The array of one of the variables."""
        key = id(variable)
        if key not in self._arrays:
            with jax.ensure_compile_time_eval():  # what is kept must not be traced, whoever reads it
                self._arrays[key] = self.pieces[key].of(self._whole)
        return self._arrays[key]

    def put(self, variable: Any, value: Array) -> None:
        self._arrays[id(variable)] = value
        self._late.add(id(variable))

    def split(self, whole: Array) -> dict[int, Array]:
        """The arrays of all variables in `whole`, which may be traced, by the variable's id."""
        arrays = unpack_buffer(whole, self.sizes)
        return {key: x.reshape(piece.shape) for (key, piece), x in zip(self.pieces.items(), arrays, strict=True)}

    def _peek(self) -> Array:
        if self._late:
            with jax.ensure_compile_time_eval():
                self._settle()
        return self._whole

    def _settle(self) -> None:
        """Puts in what variables were assigned."""
        if len(self._late) == len(self.pieces):
            self._whole = _joined([self._arrays[key] for key in self.pieces])
        else:
            self._whole = jnp.copy(self._whole)  # the following are in place, and somebody may have kept the old one
            for key in self._late:
                self._whole = _placed(self._whole, self._arrays[key], self.pieces[key].offset)
        self._late.clear()

    def _store(self, value: Array) -> None:
        self._whole = value
        self._arrays.clear()
        self._late.clear()

    def __reduce__(self) -> Any:  # a copy packs copies of the variables
        return Buffer, (self.variables, self.path)


def pack_variables(variables: Sequence[Variable]) -> list[Buffer]:
    """Puts variables into one buffer for each dtype, so that a step over a thousand of them costs what one costs.

    The buffers are variables: take gradients with respect to them, and give them to the optimizer. The variables that
    lie in them go on as before. They are read and assigned by themselves, and their values stay valid.

    Args:
        variables: `jaxopt_keras.Variable`s of floats or complex numbers, in none of which is a buffer yet.

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

    A rule that acts on each element alone runs on the buffers as they are, and its slots are buffers too (`get_slot`
    of a variable is its part). Where something sees where one variable ends, as norms, `clipnorm` and constraints do,
    the optimizer takes them one by one. A variable in a buffer that the loss does not read has the gradient 0, not
    None.

    Raises:
        TypeError: for what is no `jaxopt_keras.Variable`, or of integers. ValueError: if one occurs twice, or is packed
        already.
    """
    variables = list(several("variables", variables))
    seen: set[int] = set()
    groups: dict[str, list[Variable]] = {}
    for v in variables:
        if not isinstance(v, Variable):
            raise TypeError(
                "`variables` must be `jaxopt_keras.Variable`s: those of other libraries keep their arrays to "
                f"themselves. Received: {type(v).__module__}.{type(v).__name__} among them"
            )
        if not jnp.issubdtype(v.dtype, jnp.inexact):
            raise TypeError(
                f"`variables` must be of floats or complex numbers. Received: `{v.path}` of dtype {v.dtype}"
            )
        if id(v) in seen:
            raise ValueError(f"Each variable may occur once. Received: `{v.path}` twice")
        if v.buffer is not None:
            raise ValueError(f"`{v.path}` is packed already, in `{v.buffer.path}`: use that buffer.")
        seen.add(id(v))
        groups.setdefault(str(v.dtype), []).append(v)
    return [Buffer(group, f"packed/{dtype}") for dtype, group in groups.items()]


@functools.partial(jax.jit, static_argnums=2)
def _sliced(whole: Array, offset: Any, shape: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(whole, (offset,), (math.prod(shape),)).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _placed(whole: Array, value: Array, offset: Any) -> Array:
    return jax.lax.dynamic_update_slice(whole, value.reshape(-1), (offset,))


@jax.jit
def _joined(arrays: list[Array]) -> Array:
    return concatenate([x.reshape(-1) for x in arrays])
