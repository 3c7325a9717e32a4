"""Functions on arrays that have other semantics in TensorFlow than in `jax.numpy`."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.language.sparse import IndexedSlices
from jaxopt_keras.stateful.custom.steps import active_step
from jaxopt_keras.stateful.variable import as_dtype, value_of


def dims(shape: Any) -> tuple[int, ...]:
    """Convert a shape, which may be an array, to a tuple."""
    return tuple(int(n) for n in np.asarray(shape).reshape(-1))


def convert(value: Any, dtype: Any = None) -> Array:
    """Convert a variable, an array, a number or a list of them."""
    value = jax.tree.map(value_of, value)
    if isinstance(value, (list, tuple)) and any(isinstance(x, jax.Array) for x in jax.tree.leaves(value)):
        value = jnp.stack([convert(x) for x in value])
    return jnp.asarray(value, None if dtype is None else as_dtype(dtype))


def cast(x: Any, dtype: Any) -> Any:
    """Convert to another dtype; of complex numbers the real part."""
    if isinstance(x, IndexedSlices):
        return IndexedSlices(cast(x.values, dtype), x.indices, x.dense_shape)
    x, dtype = convert(x), as_dtype(dtype)
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return x.astype(dtype)


def norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None) -> Array:
    """Compute a norm: of all elements as one vector, if there is no `axis`; of matrices for a pair of axes."""
    ord = 2 if ord == "euclidean" else ord
    x = convert(tensor)
    if axis is not None:
        return jnp.linalg.norm(x, None if ord == "fro" else ord, dims(axis) if np.ndim(axis) else axis, bool(keepdims))
    total = jnp.linalg.norm(x.reshape(-1), 2 if ord == "fro" else ord)
    return total.reshape((1,) * x.ndim) if keepdims else total


def where(condition: Any, x: Any = None, y: Any = None) -> Array:
    """Choose elements; without `x` and `y` return the indices of True."""
    return jnp.argwhere(condition) if x is None else jnp.where(condition, x, y)


def matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
) -> Array:
    """Multiply matrices, each of which may be transposed first."""
    a, b = (jnp.swapaxes(x, -1, -2) if t else x for x, t in ((convert(a), transpose_a), (convert(b), transpose_b)))
    return jnp.matmul(*(jnp.swapaxes(x.conj(), -1, -2) if t else x for x, t in ((a, adjoint_a), (b, adjoint_b))))


def gather(params: Any, indices: Any, validate_indices: Any = None, axis: Any = 0, batch_dims: int = 0) -> Array:
    """Take slices along an axis."""
    return jnp.take(convert(params), convert(indices), axis=int(axis or 0), mode="clip")


def gather_nd(params: Any, indices: Any) -> Array:
    """Take the slices at indices that are rows of the last axis."""
    return convert(params)[tuple(jnp.moveaxis(convert(indices), -1, 0))]


def scatter_nd_update(tensor: Any, indices: Any, updates: Any) -> Array:
    """Replace the slices at indices that are rows of the last axis."""
    return convert(tensor).at[tuple(jnp.moveaxis(convert(indices), -1, 0))].set(updates)


def scatter_nd_add(tensor: Any, indices: Any, updates: Any) -> Array:
    """Add to the slices at indices that are rows of the last axis."""
    return convert(tensor).at[tuple(jnp.moveaxis(convert(indices), -1, 0))].add(updates)


def slice_(input_: Any, begin: Any, size: Any) -> Array:
    """Take `size` elements from `begin` on in each axis; -1: all that are left."""
    x = convert(input_)
    return x[tuple(slice(b, None if n < 0 else b + n) for b, n in zip(dims(begin), dims(size), strict=True))]


def unstack(value: Any, num: Any = None, axis: int = 0) -> list[Array]:
    """Split along an axis, which is removed."""
    return [*jnp.moveaxis(convert(value), axis, 0)]


def split(value: Any, num_or_size_splits: Any, axis: int = 0) -> list[Array]:
    """Split into a number of equal parts, or into parts of the given sizes."""
    sizes = num_or_size_splits
    return jnp.split(convert(value), sizes if np.ndim(sizes) == 0 else np.cumsum(dims(sizes))[:-1], axis)


def argsort(values: Any, axis: int = -1, direction: str = "ASCENDING", stable: bool = False) -> Array:
    """Return the indices that sort."""
    return jnp.argsort(convert(values), axis=axis, descending=direction == "DESCENDING").astype(jnp.int32)


def sort(values: Any, axis: int = -1, direction: str = "ASCENDING") -> Array:
    """Sort along an axis."""
    return jnp.sort(convert(values), axis=axis, descending=direction == "DESCENDING")


def one_hot(
    indices: Any, depth: int, on_value: Any = 1, off_value: Any = 0, axis: Any = None, dtype: Any = None
) -> Array:
    """Return rows with `on_value` at an index."""
    hot = jax.nn.one_hot(convert(indices), int(depth), axis=-1 if axis is None else axis, dtype=bool)
    return jnp.where(hot, on_value, off_value).astype(as_dtype(dtype or "float32"))


def range_(start: Any, limit: Any = None, delta: Any = 1, dtype: Any = None) -> Any:
    """Return a sequence of numbers, which Python's loops can use too."""
    start, limit = (0, start) if limit is None else (start, limit)
    given: list[Any] = [np.asarray(x) for x in (start, limit, delta)]
    is_float = any(x.dtype.kind == "f" for x in given)
    return np.arange(*given, dtype=as_dtype(dtype or ("float32" if is_float else "int32")))


def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Array:
    """Divide by the Euclidean norm."""
    x = convert(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axis, keepdims=True), epsilon))


def divide_no_nan(x: Any, y: Any) -> Array:
    """Divide; 0 where the divisor is 0."""
    y = convert(y)
    return jnp.where(y == 0, 0, convert(x) / jnp.where(y == 0, 1, y))


def svd(tensor: Any, full_matrices: bool = False, compute_uv: bool = True) -> Any:
    """Return (s, u, v): singular values first, and `v` itself."""
    if not compute_uv:
        return jnp.linalg.svd(convert(tensor), compute_uv=False)
    u, s, vh = jnp.linalg.svd(convert(tensor), full_matrices=full_matrices)
    return s, u, jnp.swapaxes(vh.conj(), -1, -2)


def band_part(input: Any, num_lower: int, num_upper: int) -> Array:
    """Set all but some diagonals to 0."""
    x = convert(input)
    i, j = jnp.indices(x.shape[-2:])
    keep = ((num_lower < 0) | (i - j <= num_lower)) & ((num_upper < 0) | (j - i <= num_upper))
    return jnp.where(keep, x, 0)


def triangular_solve(matrix: Any, rhs: Any, lower: bool = True, adjoint: bool = False) -> Array:
    """Solve a triangular system."""
    trans = "C" if adjoint else "N"
    return jax.scipy.linalg.solve_triangular(convert(matrix), convert(rhs), trans=trans, lower=lower)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any = None) -> Array:
    """Scale to a norm, if the norm is greater."""
    t = convert(t)
    total = jnp.sqrt(jnp.sum(jnp.square(t), axis=axes, keepdims=True))
    return t * clip_norm / jnp.maximum(total, clip_norm)


def clip_by_global_norm(t_list: Sequence[Any], clip_norm: Any, use_norm: Any = None) -> tuple[list[Any], Array]:
    """Scale all arrays by one factor, so that their joint norm is at most `clip_norm`. Return them and the norm."""
    total = global_norm(t_list) if use_norm is None else use_norm
    return [t if t is None else t * (clip_norm / jnp.maximum(total, clip_norm)) for t in t_list], total


def global_norm(t_list: Sequence[Any]) -> Array:
    """Compute the joint norm of all arrays."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(convert(t))) for t in t_list if t is not None))


def moments(x: Any, axes: Any, keepdims: bool = False) -> tuple[Array, Array]:
    """Return mean and variance."""
    axes = dims(axes)
    return jnp.mean(x, axes, keepdims=keepdims), jnp.var(x, axes, keepdims=keepdims)


# --- random numbers: new ones in each step, also in a compiled one

_calls = itertools.count()


def _key(seed: Any) -> Array:
    step, calls = active_step() or (None, _calls)
    key = jax.random.fold_in(jax.random.key(0 if seed is None else int(seed)), next(calls))
    return key if step is None else jax.random.fold_in(key, step)


def normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = "float32", seed: Any = None) -> Array:
    """Draw normal numbers. In a hook they depend on the step."""
    return mean + stddev * jax.random.normal(_key(seed), dims(shape), as_dtype(dtype))


def uniform(shape: Any, minval: Any = 0, maxval: Any = None, dtype: Any = "float32", seed: Any = None) -> Array:
    """Draw uniform numbers. In a hook they depend on the step."""
    dtype = as_dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.randint(_key(seed), dims(shape), minval, maxval, dtype)
    return jax.random.uniform(_key(seed), dims(shape), dtype, minval, 1.0 if maxval is None else maxval)


def shuffle(value: Any, seed: Any = None) -> Array:
    """Return the rows in random order."""
    return jax.random.permutation(_key(seed), convert(value))
