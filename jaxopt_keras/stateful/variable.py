"""Variables: named arrays that can be assigned, and the scope in which they are traced."""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


class Scope:
    """While it is active, the variables it maps read and write values of its own, which may be traced."""

    def __init__(self, variables: list[Any], values: list[Any]) -> None:
        self.variables = {id(v): v for v in variables}
        self.values = dict(zip(self.variables, values, strict=True))
        self.read_ids: set[int] = set()
        self.written: dict[int, Any] = {}  # id -> variable, in the order of the first write
        self.outside: dict[int, Any] = {}  # variables that the scope does not map, but that were used
        self.parent: Scope | None = None  # the scope around this one, while it is active

    def read(self, variable: Any) -> Any:
        key = id(variable)
        self.read_ids.add(key)
        if key in self.values:
            return self.values[key]
        if variable.buffer is None:
            self.outside[key] = variable
        else:
            whole = self.read(variable.buffer)
            if id(variable.buffer) in self.values:
                self.values |= variable.buffer.split(whole)  # all at once: the gradient is one concatenation then
                return self.values[key]
        return variable._load() if self.parent is None else self.parent.read(variable)

    def write(self, variable: Any, value: Any) -> None:
        key = id(variable)
        if variable.buffer is not None and key not in self.variables:
            whole = self.read(variable.buffer)
            self._set(variable.buffer, variable.buffer.pieces[key].put(whole, value))
            self.values[key] = value
            return
        for part in getattr(variable, "pieces", ()):  # what was cut out of a buffer
            self.values.pop(part, None)
        self._set(variable, value)

    def _set(self, variable: Any, value: Any) -> None:
        key = id(variable)
        if key not in self.variables:
            self.outside[key] = variable
        self.values[key] = value
        self.written[key] = variable

    @contextlib.contextmanager
    def active(self) -> Iterator["Scope"]:
        self.parent = _scope.get()
        token = _scope.set(self)
        try:
            yield self
        finally:
            _scope.reset(token)


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("scope", default=None)


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        return getattr(self.value, name)(*(value_of(other) for other in others))

    return method


class ArrayLike:
    """What reads as its array does, and can be assigned. Subclasses say where the array is kept."""

    name: str
    path: str
    buffer: Any = None  # in which it lies, if it is packed

    def _peek(self) -> Any:
        """The array itself, for a look: what keeps it may be donated later."""
        raise NotImplementedError

    def _load(self) -> Any:
        """The array, to be handed out."""
        return self._peek()

    def _store(self, value: Any) -> None:
        raise NotImplementedError

    def _seen(self) -> Any:
        scope = _scope.get()
        return self._peek() if scope is None else scope.read(self)

    @property
    def value(self) -> Any:
        """The current array. It stays valid after later updates."""
        scope = _scope.get()
        return self._load() if scope is None else scope.read(self)

    def assign(self, value: Any) -> Any:
        """Sets the array, cast to the dtype it has.

        Raises:
            ValueError: if the shape is another. TypeError: if `value` is no number, or is traced (inside `jit`, say).
        """
        value, current = as_array(value, self.path), self._seen()
        if value.shape != current.shape:
            raise ValueError(f"`{self.path}` has shape {current.shape}. Received: a value of shape {value.shape}")
        _check_real(value, current.dtype, self.path)
        value = value.astype(current.dtype)
        scope = _scope.get()
        if scope is not None:
            scope.write(self, value)
        elif isinstance(value, Tracer) and not isinstance(current, Tracer):
            raise TypeError(
                f"`{self.path}` cannot be assigned inside `jit`, `grad` or another transformation: the value exists "
                "only there. Return it, and assign it outside; or see `jaxopt_keras.value_and_grad`."
            )
        else:
            self._store(value)
        return self

    def assign_add(self, value: Any) -> Any:
        """Adds `value` in place."""
        return self.assign(self.value + _like(value, self.value, self.path))

    def assign_sub(self, value: Any) -> Any:
        """Subtracts `value` in place."""
        return self.assign(self.value - _like(value, self.value, self.path))

    def numpy(self) -> np.ndarray:
        """A NumPy copy."""
        return np.array(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._seen().shape

    @property
    def dtype(self) -> Any:
        return self._seen().dtype

    def __getattr__(self, name: str) -> Any:  # what else an array has: ndim, size, T, reshape, sum, ...
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.value, name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype, copy=copy)

    def __jax_array__(self) -> Any:
        return self.value

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return self.value.__index__()

    def __bool__(self) -> bool:
        return bool(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} path={self.path!r} shape={self.shape} dtype={self.dtype} value={self.value}>"

    __add__, __radd__ = _operator("__add__"), _operator("__radd__")
    __sub__, __rsub__ = _operator("__sub__"), _operator("__rsub__")
    __mul__, __rmul__ = _operator("__mul__"), _operator("__rmul__")
    __truediv__, __rtruediv__ = _operator("__truediv__"), _operator("__rtruediv__")
    __floordiv__, __rfloordiv__ = _operator("__floordiv__"), _operator("__rfloordiv__")
    __mod__, __rmod__ = _operator("__mod__"), _operator("__rmod__")
    __pow__, __rpow__ = _operator("__pow__"), _operator("__rpow__")
    __matmul__, __rmatmul__ = _operator("__matmul__"), _operator("__rmatmul__")
    __and__, __rand__ = _operator("__and__"), _operator("__rand__")
    __or__, __ror__ = _operator("__or__"), _operator("__ror__")
    __xor__, __rxor__ = _operator("__xor__"), _operator("__rxor__")
    __neg__, __pos__, __abs__ = _operator("__neg__"), _operator("__pos__"), _operator("__abs__")
    __invert__, __round__ = _operator("__invert__"), _operator("__round__")
    __lt__, __le__, __gt__, __ge__ = (_operator(f"__{name}__") for name in ("lt", "le", "gt", "ge"))
    __eq__, __ne__ = _operator("__eq__"), _operator("__ne__")  # elementwise
    __hash__ = object.__hash__  # by identity


def value_of(x: Any) -> Any:
    """The array of a variable; anything else as it is."""
    return x.value if isinstance(x, ArrayLike) else x


def several(name: str, values: Any, kind: str = "a list") -> Iterable[Any]:
    """`values`, which can be iterated over.

    Raises:
        TypeError: if they cannot, or are an array or a variable.
    """
    if isinstance(values, Iterable) and not isinstance(values, (str, dict)) and not hasattr(values, "dtype"):
        return values
    raise TypeError(f"`{name}` must be {kind}. Received: {name}={str(values)[:80]} ({type(values).__name__})")


def as_dtype(dtype: Any) -> Any:
    """A dtype out of its name, or of what else JAX takes for one.

    Raises:
        TypeError: if it is none.
    """
    try:
        return jax.dtypes.canonicalize_dtype(getattr(dtype, "base_dtype", dtype))
    except TypeError as error:
        raise TypeError(f"`dtype` must be the dtype of an array. Received: dtype={dtype!r} ({error})") from None


def as_array(value: Any, name: str) -> Array:
    """`value` as an array of numbers.

    Raises:
        TypeError: if it is not one.
    """
    value = value_of(value)
    if isinstance(value, Array):
        return value
    if value is None or isinstance(value, (str, bytes)):  # JAX may take text for a dtype
        raise TypeError(f"`{name}` takes an array of numbers. Received: {value!r}")
    try:
        if hasattr(value, "__array__") and not hasattr(value, "__jax_array__"):
            value = np.array(
                value
            )  # JAX may look at the memory of a NumPy array later, when its owner has written there
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` takes an array of numbers. Received: {type(value).__name__} ({error})") from None


def _like(value: Any, current: Array, path: str) -> Array:
    """An amount to add to `current`, the array of the variable at `path`.

    Raises:
        ValueError: if the shape does not fit. TypeError: if it is no number, or complex where `current` is real.
    """
    value = as_array(value, path)
    if value.shape not in ((), current.shape):
        raise ValueError(f"`{path}` has shape {current.shape}. Received: a value of shape {value.shape}")
    _check_real(value, current.dtype, path)
    return value.astype(current.dtype)


def _check_real(value: Array, dtype: Any, path: str) -> None:
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"`{path}` is real ({dtype}). Received: a value of dtype {value.dtype}")


_names: Counter[str] = Counter()


def unique_name(stem: str) -> str:
    """`stem`, `stem_1`, `stem_2`, ... from call to call, as Keras numbers what has no name."""
    count = _names[stem]
    _names[stem] += 1
    return f"{stem}_{count}" if count else stem


class Variable(ArrayLike):
    """A named array that can be assigned, for the stateful face.

    Args:
        initial_value: an array, a number, or a function without arguments that returns one. Python floats become
            float32 (float64 under x64).
        dtype: of the array; None: that of `initial_value`.
        name: unique names `variable`, `variable_1`, ... are made where there is none. A name may hold slashes: it is
            also the `path`, which regular expressions for groups and exclusions search.
        trainable: a mark for the caller's own use: an optimizer updates what it is given.
        constraint: a function of the array, applied after each update.

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
        if not (name is None or isinstance(name, str)):
            raise TypeError(f"`name` must be a string or None. Received: name={name!r}")
        if not (constraint is None or callable(constraint)):
            raise TypeError(f"`constraint` must be a function or None. Received: constraint={constraint!r}")
        value = initial_value() if callable(initial_value) else initial_value
        array = as_array(value, "initial_value")
        if dtype is None and not hasattr(value_of(value), "dtype") and jnp.issubdtype(array.dtype, jnp.inexact):
            dtype = jnp.result_type(float) if not jnp.iscomplexobj(array) else array.dtype
        # A copy: the optimizer donates what a variable holds, and the caller keeps what was passed.
        dtype = array.dtype if dtype is None else as_dtype(dtype)
        _check_real(array, dtype, name or "initial_value")
        self._value = jnp.array(array, dtype, copy=True)
        self.path = unique_name("variable") if name is None else name
        self.name = self.path.rsplit("/", 1)[-1]
        self.trainable = trainable
        self.constraint = constraint

    def _peek(self) -> Any:
        return self._value if self.buffer is None else self.buffer.piece(self)

    def _store(self, value: Any) -> None:
        if self.buffer is None:
            self._value = value
        else:
            self.buffer.put(self, value)

    def pack_into(self, buffer: Any) -> None:
        """From now on `buffer` holds the array (`buffers`)."""
        self.buffer, self._value = buffer, None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Variable":
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update(self.__dict__, _value=jnp.copy(self._peek()), buffer=None)
        return copy

    def __getstate__(self) -> dict[str, Any]:  # by itself: a copy of its buffer packs it anew
        return self.__dict__ | {"_value": np.array(self._peek()), "buffer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _value=jnp.asarray(state["_value"]))
