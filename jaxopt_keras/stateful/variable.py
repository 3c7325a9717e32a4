"""Variables: named arrays that can be assigned."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_keras.stateful.lock import LOCK, locked
from jaxopt_keras.stateful.operators import Operators, in_tensor
from jaxopt_keras.stateful.operators import value_of as value_of
from jaxopt_keras.stateful.scope import active_scope
from jaxopt_keras.stateful.tensorflow_names import Shape, TensorFlowNames


class ArrayLike(Operators, TensorFlowNames):
    """A named array that can be assigned and acts as an array in arithmetic. Subclasses define its storage."""

    name: str
    path: str
    buffer: Any = None  # the `Buffer` that holds the array, if it is packed
    adopts = False  # whether it is the view of a variable whose array it has taken

    def _raw_value(self) -> Any:
        """Return the stored array itself, for immediate use: a later step may donate it."""
        raise NotImplementedError

    def _safe_value(self) -> Any:
        """Return an array that callers may keep: no step donates it."""
        return self._raw_value()

    def _store(self, value: Any) -> None:
        """Replace the stored array."""
        raise NotImplementedError

    def _scoped_value(self) -> Any:
        """Return the value in the active scope; without a scope the stored array itself."""
        scope = active_scope()
        with LOCK:
            return self._raw_value() if scope is None else scope.read(self)

    @property
    def value(self) -> Any:
        """Current array. It stays valid after later updates."""
        scope = active_scope()
        with LOCK:
            return self._safe_value() if scope is None else in_tensor(scope.read(self))

    def assign(self, value: Any, use_locking: Any = None, name: Any = None, read_value: bool = True) -> Any:
        """Replace the array; `value` is cast to the present dtype. TF's other arguments have no effect.

        Raises:
            ValueError: if the shape differs. TypeError: if `value` is not numeric, is complex where the variable is
                real, or is traced (inside `jit`, for example).
        """
        current, scope = self._scoped_value(), active_scope()
        value = _fitted(value, current, self.path, (current.shape,))
        if scope is not None:
            scope.write(self, value)
        elif isinstance(value, Tracer) and not isinstance(current, Tracer):
            raise TypeError(
                f"`{self.path}` cannot be assigned inside `jit`, `grad` or another transformation: the value exists "
                "only there. Return it, and assign it outside; or see `jaxopt_keras.value_and_grad`."
            )
        else:
            with LOCK:
                self._store(value)
        return self

    def assign_add(self, value: Any, use_locking: Any = None, name: Any = None, read_value: bool = True) -> Any:
        """Add `value` in place. TF's other arguments have no effect."""
        return self.assign(self.value + self._amount(value))

    def assign_sub(self, value: Any, use_locking: Any = None, name: Any = None, read_value: bool = True) -> Any:
        """Subtract `value` in place. TF's other arguments have no effect."""
        return self.assign(self.value - self._amount(value))

    def _amount(self, value: Any) -> Array:
        current = self._scoped_value()
        return _fitted(value, current, self.path, ((), current.shape))

    def numpy(self) -> np.ndarray:
        """Return a NumPy copy."""
        return np.array(self.value)

    @property
    def shape(self) -> Shape:
        return Shape(self._scoped_value().shape)

    @property
    def dtype(self) -> Any:
        return self._scoped_value().dtype

    def __getattr__(self, name: str) -> Any:  # all other array attributes: ndim, size, T, reshape, ...
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.value, name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype, copy=copy)

    def __jax_array__(self) -> Any:
        return value_of(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} path={self.path!r} shape={self.shape} dtype={self.dtype} value={self.value}>"

    __hash__ = object.__hash__  # by identity


def check(valid: bool, name: str, value: Any, kind: str) -> None:
    """Raise a TypeError if an argument is not valid.

    Args:
        valid: whether it is.
        name: the argument's name.
        value: the argument.
        kind: what the error says the argument must be.
    """
    if not valid:
        raise TypeError(f"`{name}` must be {kind}. Received: {name}={value!r}")


def check_iterable(name: str, values: Any, kind: str = "a list") -> Iterable[Any]:
    """Return `values` if it is an iterable argument such as a list.

    Args:
        name: the argument's name, for the error.
        values: the argument.
        kind: what the error says the argument must be.

    Raises:
        TypeError: if `values` is not iterable, or is a string, a dict, an array or a variable.
    """
    if isinstance(values, Iterable) and not isinstance(values, (str, dict)) and not hasattr(values, "dtype"):
        return values
    raise TypeError(f"`{name}` must be {kind}. Received: {name}={str(values)[:80]} ({type(values).__name__})")


def as_dtype(dtype: Any) -> Any:
    """Convert a dtype, its name or anything that JAX accepts as one to the dtype that JAX uses.

    Raises:
        TypeError: if JAX does not accept it.
    """
    try:
        return jax.dtypes.canonicalize_dtype(getattr(dtype, "base_dtype", dtype))
    except TypeError as error:
        raise TypeError(f"`dtype` must be the dtype of an array. Received: dtype={dtype!r} ({error})") from None


def as_array(value: Any, name: str) -> Array:
    """Convert `value` to a JAX array of numbers; `name` is used in the error.

    Raises:
        TypeError: if that is not possible.
    """
    value = value_of(value)
    if isinstance(value, Array):
        return value
    if value is None or isinstance(value, (str, bytes)):  # JAX may read a string as the name of a dtype
        raise TypeError(f"`{name}` takes an array of numbers. Received: {value!r}")
    try:
        if hasattr(value, "__array__") and not hasattr(value, "__jax_array__"):
            value = np.array(value)  # a copy: JAX may read a NumPy array's memory after its owner has changed it
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` takes an array of numbers. Received: {type(value).__name__} ({error})") from None


def _fitted(value: Any, current: Array, path: str, shapes: tuple[Any, ...]) -> Array:
    """Convert `value` to the dtype of `current`, the array of the variable at `path`.

    Raises:
        ValueError: if its shape is not one of `shapes`. TypeError: if it is not numeric, or complex where `current` is
            real.
    """
    value = as_array(value, path)
    if value.shape not in shapes:
        raise ValueError(f"`{path}` has shape {current.shape}. Received: a value of shape {value.shape}")
    _check_real(value, current.dtype, path)
    return value.astype(current.dtype)


def _check_real(value: Array, dtype: Any, path: str) -> None:
    """Raise a TypeError for a complex value of a real variable."""
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"`{path}` is real ({dtype}). Received: a value of dtype {value.dtype}")


_counts: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def unique_name(stem: str) -> str:
    """Return `stem`, then `stem_1`, `stem_2`, ... on later calls: the names that Keras gives to unnamed objects."""
    count = next(_counts[stem])
    return f"{stem}_{count}" if count else stem


def deduplicated(path: str, taken: Any) -> str:
    """Return `path`, with a number at its end if it is in `taken`."""
    taken = set(taken)
    return next(p for p in (path, *(f"{path}_{i}" for i in range(1, len(taken) + 2))) if p not in taken)


class Variable(ArrayLike):
    """A named array that can be assigned: a parameter of the stateful face.

    Args:
        initial_value: an array, a number, or a function without arguments that returns one. Python floats become
            float32 (float64 under x64).
        dtype: dtype of the array; None: that of `initial_value`.
        name: name of the variable; None: a unique name `variable`, `variable_1`, ... A name may contain slashes. It
            is also the `path` that regular expressions for groups and exclusions search.
        trainable: False: `value_and_grad` and `minimize` give it the gradient None, and no optimizer updates it. Can be
            set at any time.
        constraint: a function of the array, applied after each update.

    A variable is no array: pass functions of JAX its `value`, as in `jnp.sum(w.value)`. For the variable itself JAX
    raises "Triggering __jax_array__() during abstractification is no longer supported". Operators, indexing and
    methods (`w * 2`, `w[0]`, `w.sum()`) take it as it is.

    Raises:
        TypeError: if `initial_value` is not numeric, or complex where `dtype` is real; if `dtype` is not a dtype,
            `name` not a string or `constraint` not a function.

    >>> w = Variable([1.0, 2.0], name="w")
    >>> w.assign_sub([0.5, 0.5]).numpy().tolist()
    [0.5, 1.5]
    >>> float((w * 2).sum())
    4.0
    """

    def __init__(
        self,
        initial_value: Any,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        constraint: Callable[[Any], Any] | None = None,
    ) -> None:
        check(isinstance(name, str | None), "name", name, "a string or None")
        check(constraint is None or callable(constraint), "constraint", constraint, "a function or None")
        value = initial_value() if callable(initial_value) else initial_value
        array = as_array(value, "initial_value")
        if dtype is None and not hasattr(value_of(value), "dtype") and jnp.issubdtype(array.dtype, jnp.inexact):
            dtype = jnp.result_type(float) if not jnp.iscomplexobj(array) else array.dtype
        # A copy: the optimizer donates the variable's array, and the caller may keep using `initial_value`.
        dtype = array.dtype if dtype is None else as_dtype(dtype)
        _check_real(array, dtype, name or "initial_value")
        self._value = jnp.array(array, dtype, copy=True)
        self.path = unique_name("variable") if name is None else name
        self.name = self.path.rsplit("/", 1)[-1]
        self.trainable = trainable
        self.constraint = constraint

    def _raw_value(self) -> Any:
        return self._value if self.buffer is None else self.buffer.read_slice(self)

    def _store(self, value: Any) -> None:
        if self.buffer is None:
            self._value = value
        else:
            self.buffer.write_slice(self, value)

    def pack_into(self, buffer: Any) -> None:
        """Give up the own array: from now on `buffer`, a `packed_variables.Buffer`, holds it."""
        self.buffer, self._value = buffer, None

    @locked
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.is_adopted and (optimizer := memo.get(id(self.buffer.optimizer))) is not None:
            return optimizer.view(self.buffer.place)
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update(self.__dict__, _value=jnp.copy(self._raw_value()), buffer=None)
        return copy

    @property
    def is_adopted(self) -> bool:
        """Whether the array is part of an optimizer's state (`custom/adoption.py`)."""
        return self.buffer is not None and self.buffer.adopts

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.buffer.__reduce__() if self.is_adopted else super().__reduce_ex__(protocol)

    @locked
    def __getstate__(self) -> dict[str, Any]:  # unpacked: a copy of the buffer packs it again
        return self.__dict__ | {"_value": np.array(self._raw_value()), "buffer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _value=jnp.asarray(state["_value"]))
