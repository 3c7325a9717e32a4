"""The table of TensorFlow's functions: its signature, and the function of JAX that computes it.

What Keras has under TensorFlow's name, and this table has not, is taken from `keras.ops` (`from_keras`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.interop.tensorflow import arrays
from jaxopt_keras.interop.tensorflow.arrays import convert, dims
from jaxopt_keras.interop.tensorflow.calls import table, with_signature


def of_one(names: str) -> dict[str, Callable[..., Any]]:
    """Return functions of one argument, with the names that they have in `jax.numpy`."""
    return {name: with_signature(f"{name}(x)", _of_arrays(getattr(jnp, name))) for name in names.split()}


def of_two(names: str, **others: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return functions of two arguments: with the names that they have in `jax.numpy`, and with other names."""
    found = {name: getattr(jnp, name) for name in names.split()} | others
    return {name: with_signature(f"{name}(x, y)", _of_arrays(f)) for name, f in found.items()}


def _of_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes lists of numbers too."""

    @functools.wraps(function, ("__name__", "__module__"), ())
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(convert, args), **kwargs)

    return call


def reductions(**functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return functions that reduce axes."""
    signature = "{}(input_tensor, axis=None, keepdims=False)"
    return {name: with_signature(signature.format(name), _reduced(f)) for name, f in functions.items()}


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axis = axis if axis is None else dims(axis) if np.ndim(axis) else int(axis)
        return function(convert(x), axis=axis, keepdims=bool(keepdims))

    call.__name__, call.__module__ = function.__name__, function.__module__
    return call


MATH = {
    **of_one("abs sign square sqrt exp expm1 log log1p floor ceil round negative reciprocal real imag conj sin cos"),
    **of_one("tan sinh cosh tanh logical_not isnan isinf isfinite angle"),
    **of_two("add subtract multiply divide maximum minimum equal not_equal greater greater_equal less less_equal"),
    **of_two("logical_and logical_or logical_xor", pow=jnp.power, floordiv=jnp.floor_divide, floormod=jnp.mod),
    **of_two("", mod=jnp.mod, truediv=jnp.true_divide, divide_no_nan=arrays.divide_no_nan, atan2=jnp.arctan2),
    **of_two("", squared_difference=lambda x, y: jnp.square(convert(x) - convert(y))),
    **of_two("", multiply_no_nan=lambda x, y: jnp.where(convert(y) == 0, 0, convert(x) * y)),
    **reductions(reduce_sum=jnp.sum, reduce_mean=jnp.mean, reduce_max=jnp.max, reduce_min=jnp.min),
    **reductions(reduce_prod=jnp.prod, reduce_any=jnp.any, reduce_all=jnp.all, reduce_std=jnp.std),
    **reductions(reduce_variance=jnp.var, reduce_logsumexp=jax.nn.logsumexp),
    **table({
        "rsqrt(x)": _of_arrays(jax.lax.rsqrt),
        "sigmoid(x)": jax.nn.sigmoid,
        "softplus(features)": jax.nn.softplus,
        "erf(x)": _of_arrays(jax.scipy.special.erf),
        "is_nan(x)": _of_arrays(jnp.isnan),
        "is_inf(x)": _of_arrays(jnp.isinf),
        "is_finite(x)": _of_arrays(jnp.isfinite),
        "acos(x)": jnp.arccos,
        "asin(x)": jnp.arcsin,
        "atan(x)": jnp.arctan,
        "l2_normalize(x, axis=None, epsilon=1e-12)": arrays.l2_normalize,
        "cumsum(x, axis=0)": jnp.cumsum,
        "cumprod(x, axis=0)": jnp.cumprod,
        "argmax(input, axis=0)": jnp.argmax,
        "argmin(input, axis=0)": jnp.argmin,
        "add_n(inputs)": lambda inputs: sum(inputs[1:], convert(inputs[0])),
        "reduce_euclidean_norm(input_tensor, axis=None, keepdims=False)": arrays.norm,
        "unsorted_segment_sum(data, segment_ids, num_segments)": lambda x, i, n: jax.ops.segment_sum(x, i, int(n)),
        "count_nonzero(input, axis=None, keepdims=None)": jnp.count_nonzero,
    }),
}  # fmt: skip

LINALG = table({
    "norm(tensor, ord='euclidean', axis=None, keepdims=None)": arrays.norm,
    "matmul(a, b, transpose_a=False, transpose_b=False, adjoint_a=False, adjoint_b=False)": arrays.matmul,
    "tensordot(a, b, axes)": lambda a, b, axes: jnp.tensordot(convert(a), convert(b), axes),
    "einsum(equation, *inputs)": jnp.einsum,
    "trace(x)": lambda x: jnp.trace(convert(x), axis1=-2, axis2=-1),
    "eye(num_rows, num_columns=None, batch_shape=None, dtype='float32')":
        lambda n, num_columns=None, batch_shape=None, dtype="float32": jnp.broadcast_to(
            jnp.eye(int(n), num_columns, dtype=arrays.as_dtype(dtype)),
            (*dims(batch_shape or ()), int(n), int(num_columns or n))),
    "band_part(input, num_lower, num_upper)": arrays.band_part,
    "cross(a, b)": jnp.cross,
    "diag(diagonal)": lambda x: jnp.vectorize(jnp.diag, signature="(n)->(n,n)")(convert(x)),
    "diag_part(input)": lambda x: jnp.diagonal(convert(x), axis1=-2, axis2=-1),
    "matrix_transpose(a)": lambda a: jnp.swapaxes(convert(a), -1, -2),
    "qr(input, full_matrices=False)":
        lambda x, full_matrices=False: jnp.linalg.qr(convert(x), "complete" if full_matrices else "reduced"),
    "svd(tensor, full_matrices=False, compute_uv=True)": arrays.svd,
    "eigh(tensor)": lambda x: tuple(jnp.linalg.eigh(convert(x))),
    "eigvalsh(tensor)": lambda x: jnp.linalg.eigvalsh(convert(x)),
    "cholesky(input)": lambda x: jnp.linalg.cholesky(convert(x)),
    "inv(input)": lambda x: jnp.linalg.inv(convert(x)),
    "pinv(a)": lambda x: jnp.linalg.pinv(convert(x)),
    "det(input)": lambda x: jnp.linalg.det(convert(x)),
    "solve(matrix, rhs)": lambda a, b: jnp.linalg.solve(convert(a), convert(b)),
    "triangular_solve(matrix, rhs, lower=True, adjoint=False)": arrays.triangular_solve,
    "matrix_rank(a)": lambda x: jnp.linalg.matrix_rank(convert(x)),
})  # fmt: skip

NN = {
    **{name: with_signature(f"{name}(features)", getattr(jax.nn, name)) for name in "relu relu6 elu selu silu".split()},
    **table({
        "gelu(features, approximate=False)": jax.nn.gelu,
        "softsign(features)": jax.nn.soft_sign,
        "softplus(features)": jax.nn.softplus,
        "sigmoid(x)": jax.nn.sigmoid,
        "tanh(x)": jnp.tanh,
        "leaky_relu(features, alpha=0.2)": lambda x, alpha=0.2: jax.nn.leaky_relu(x, alpha),
        "softmax(logits, axis=-1)": jax.nn.softmax,
        "log_softmax(logits, axis=-1)": jax.nn.log_softmax,
        "l2_normalize(x, axis=None, epsilon=1e-12)": arrays.l2_normalize,
        "l2_loss(t)": lambda t: jnp.sum(jnp.square(convert(t))) / 2,
        "moments(x, axes, keepdims=False)": arrays.moments,
        "embedding_lookup(params, ids)": arrays.gather,
    }),
}  # fmt: skip

RANDOM = table({
    "normal(shape, mean=0.0, stddev=1.0, dtype='float32', seed=None)": arrays.normal,
    "uniform(shape, minval=0, maxval=None, dtype='float32', seed=None)": arrays.uniform,
    "shuffle(value, seed=None)": arrays.shuffle,
})  # fmt: skip

ARRAYS = table({
    "cast(x, dtype)": arrays.cast,
    "convert_to_tensor(value, dtype=None)": convert,
    "constant(value, dtype=None, shape=None)":
        lambda value, dtype=None, shape=None:
            convert(value, dtype) if shape is None else jnp.broadcast_to(convert(value, dtype), dims(shape)),
    "identity(input)": convert,
    "stop_gradient(input)": jax.lax.stop_gradient,
    "reshape(tensor, shape)": lambda x, shape: jnp.reshape(convert(x), dims(shape)),
    "transpose(a, perm=None, conjugate=False)":
        lambda a, perm=None, conjugate=False: jnp.transpose(convert(a).conj() if conjugate else convert(a), perm),
    "expand_dims(input, axis)": lambda x, axis: jnp.expand_dims(convert(x), axis),
    "squeeze(input, axis=None)": lambda x, axis=None: jnp.squeeze(convert(x), axis),
    "stack(values, axis=0)": lambda values, axis=0: jnp.stack([convert(x) for x in values], axis),
    "concat(values, axis)": lambda values, axis: jnp.concatenate([convert(x) for x in values], int(axis)),
    "tile(input, multiples)": lambda x, multiples: jnp.tile(convert(x), dims(multiples)),
    "repeat(input, repeats, axis=None)": lambda x, repeats, axis=None: jnp.repeat(convert(x), repeats, axis),
    "reverse(tensor, axis)": lambda x, axis: jnp.flip(convert(x), dims(axis)),
    "roll(input, shift, axis)": lambda x, shift, axis: jnp.roll(convert(x), shift, axis),
    "pad(tensor, paddings)": lambda x, paddings: jnp.pad(convert(x), np.asarray(paddings)),
    "broadcast_to(input, shape)": lambda x, shape: jnp.broadcast_to(convert(x), dims(shape)),
    "shape(input, out_type='int32')": lambda x, out_type="int32": np.array(jnp.shape(x), np.int32),
    "size(input, out_type='int32')": lambda x, out_type="int32": int(np.prod(jnp.shape(convert(x)))),
    "rank(input)": lambda x: len(jnp.shape(convert(x))),
    "zeros(shape, dtype='float32')": lambda shape, dtype="float32": jnp.zeros(dims(shape), arrays.as_dtype(dtype)),
    "ones(shape, dtype='float32')": lambda shape, dtype="float32": jnp.ones(dims(shape), arrays.as_dtype(dtype)),
    "fill(dims, value)": lambda shape, value: jnp.full(dims(shape), value),
    "zeros_like(input, dtype=None)": lambda x, dtype=None: jnp.zeros_like(convert(x), dtype and arrays.as_dtype(dtype)),
    "ones_like(input, dtype=None)": lambda x, dtype=None: jnp.ones_like(convert(x), dtype and arrays.as_dtype(dtype)),
    "range(start, limit=None, delta=1, dtype=None)": arrays.range_,
    "linspace(start, stop, num)": lambda start, stop, num: jnp.linspace(start, stop, int(num)),
    "complex(real, imag)": jax.lax.complex,
    "where(condition, x=None, y=None)": arrays.where,
    "clip_by_value(t, clip_value_min, clip_value_max)": jnp.clip,
    "clip_by_norm(t, clip_norm, axes=None)": arrays.clip_by_norm,
    "clip_by_global_norm(t_list, clip_norm, use_norm=None)": arrays.clip_by_global_norm,
    "gather(params, indices, validate_indices=None, axis=0, batch_dims=0)": arrays.gather,
    "gather_nd(params, indices)": arrays.gather_nd,
    "tensor_scatter_nd_update(tensor, indices, updates)": arrays.scatter_nd_update,
    "tensor_scatter_nd_add(tensor, indices, updates)": arrays.scatter_nd_add,
    "slice(input_, begin, size)": arrays.slice_,
    "split(value, num_or_size_splits, axis=0)": arrays.split,
    "unstack(value, num=None, axis=0)": arrays.unstack,
    "unravel_index(indices, dims)": lambda indices, shape: jnp.stack(jnp.unravel_index(indices, dims(shape))),
    "sort(values, axis=-1, direction='ASCENDING')": arrays.sort,
    "argsort(values, axis=-1, direction='ASCENDING', stable=False)": arrays.argsort,
    "one_hot(indices, depth, on_value=1, off_value=0, axis=None, dtype=None)": arrays.one_hot,
    "unique(x)": lambda x: jnp.unique(convert(x), return_inverse=True),
    "vectorized_map(fn, elems)": lambda fn, elems: jax.vmap(fn)(elems),
    "is_tensor(x)": lambda x: isinstance(x, jax.Array),
})  # fmt: skip

# Names in `tf` itself of functions of its namespaces
HERE = (
    "abs sign square sqrt exp floor round negative sin cos tan sinh cosh tanh sigmoid add subtract multiply divide pow "
    "maximum minimum equal not_equal greater greater_equal less less_equal logical_and logical_or logical_not truediv "
    "reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_any reduce_all reduce_logsumexp cumsum argmax "
    "argmin add_n atan2 acos asin atan real imag"
)
TOP = {name: MATH[name] for name in HERE.split()} | {
    name: LINALG[name] for name in ("norm", "matmul", "tensordot", "einsum", "eye")
}

BACKEND = {  # of `tf.keras.backend`: the names that the functions above have there
    **{name: ARRAYS[name] for name in "reshape transpose expand_dims squeeze stack tile zeros_like ones_like".split()},
    **{name: ARRAYS[name] for name in "gather cast shape zeros ones one_hot reverse stop_gradient identity".split()},
    **{name: MATH[name] for name in "abs sign square sqrt exp log round maximum minimum equal not_equal".split()},
    **{name: MATH[name] for name in "greater greater_equal less less_equal pow sin cos tanh sigmoid argmax".split()},
    **{name: MATH["reduce_" + name] for name in "sum mean max min prod any all std logsumexp".split()},
    "var": MATH["reduce_variance"],
    "concatenate": ARRAYS["concat"],
    "constant": ARRAYS["constant"],
    "clip": with_signature("clip(x, min_value, max_value)", jnp.clip),
    "flatten": with_signature("flatten(x)", lambda x: jnp.reshape(convert(x), -1)),
    "dot": with_signature("dot(x, y)", jnp.dot),
    "relu": NN["relu"],
    "softmax": NN["softmax"],
    "softsign": NN["softsign"],
    "int_shape": with_signature("int_shape(x)", jnp.shape),
    "ndim": with_signature("ndim(x)", jnp.ndim),
    "l2_normalize": MATH["l2_normalize"],
    "eye": with_signature("eye(size, dtype='float32')", jnp.eye),
}
