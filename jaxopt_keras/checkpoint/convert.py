"""Conversion of a saved value to the format of an optimizer: checks the shape, casts, quantizes, dequantizes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint.names import Quantized
from jaxopt_keras.language.numerics import Complemented, Complements
from jaxopt_keras.stateful.state_views import device_put_like
from jaxopt_keras.storage import formats, masters
from jaxopt_keras.storage.blockwise import Blocks, dequantize, quantize, stored_dtype

MASTERS = {"float32": "float32", "int16": "bf16+16", "int8": "bf16+8"}  # by the dtype of the slot


def convert(name: str, saved: Any, like: Any, p: Any = None) -> Any:
    """`saved` with the format, the dtype and the sharding of `like`.

    Args:
        p: the parameter. Read for master weights only, which store its correction.

    Raises:
        ValueError, TypeError: as in `check`.
    """
    check(name, saved, like)
    if isinstance(like, (Complemented, Complements)):
        value, complement = saved if isinstance(saved, Complements) else (saved, 1 - np.asarray(saved))
        return type(like)(convert(name, value, like.value), convert(name, complement, like.complement))
    if isinstance(saved, Complements):
        saved = saved.value
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = convert(name, saved, jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if isinstance(saved, Quantized):
        length = like.shape[saved.tiles.axis if saved.tiles else -1]
        codes = jnp.asarray(saved.codes).astype(stored_dtype(saved.code, saved.tiles))
        saved = Blocks(codes, jnp.asarray(saved.scales), saved.code, length, saved.tiles)
        if isinstance(like, Blocks) and jax.tree.structure(saved) == jax.tree.structure(like):
            return jax.tree.map(_placed_like, saved, like)
        saved = dequantize(saved)
    if name.endswith(f"/{masters.MASTER}") and saved.dtype != like.dtype:
        whole = masters.join_master(p, jnp.asarray(saved), MASTERS[str(saved.dtype)])
        return _placed_like(masters.split_master(whole, MASTERS[str(like.dtype)], p.dtype)[1], like)
    return jax.tree.map(_placed_like, formats.quantize_like(saved, like), like)


def check(name: str, saved: Any, like: Any) -> None:
    """Checks that `saved` can be converted to `like`. Reads only shapes and dtypes, so both may be abstract.

    Raises:
        ValueError: if the shapes differ. TypeError: if the kinds differ, such as complex and float.
    """
    if isinstance(like, (Complemented, Complements)):
        like = like.value
    if isinstance(saved, Complements):
        check(name, saved.complement, like)
        saved = saved.value
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        like = jax.eval_shape(jax.random.key_data, like)
    if isinstance(saved, Quantized):
        return _check_codes(name, saved, tuple(like.shape))
    if tuple(saved.shape) != tuple(like.shape):
        raise _shape_error(name, f"shape {tuple(saved.shape)}", like.shape)
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    rank = [next((i for i, kind in enumerate(kinds) if jnp.issubdtype(x.dtype, kind)), None) for x in (saved, like)]
    corrected = name.endswith(f"/{masters.MASTER}")
    if rank[0] is None or (rank[1] is not None and rank[0] > rank[1] and not corrected):
        raise TypeError(f"`{name}` must be convertible to {like.dtype}. Received: an array of {saved.dtype}")
    return None


def _check_codes(name: str, saved: Quantized, shape: tuple[int, ...]) -> None:
    """Checks that `saved` is a quantized array of this shape."""
    if len(shape) < (-saved.tiles.axis if saved.tiles else 1):
        raise _shape_error(name, f"codes of shape {tuple(saved.codes.shape)}", shape)
    form = functools.partial(quantize, code=saved.code, tiles=saved.tiles)
    wanted = jax.eval_shape(form, jax.ShapeDtypeStruct(shape, jnp.float32))
    for kind in ("codes", "scales"):
        x, like = getattr(saved, kind), getattr(wanted, kind)
        if tuple(x.shape) != like.shape:
            raise _shape_error(name, f"{kind} of shape {tuple(x.shape)}", shape)
        if x.dtype != like.dtype and not (saved.code.name == "int4" and kind == "codes"):
            raise TypeError(f"The {kind} of `{name}` must have the dtype {like.dtype}. Received: {x.dtype}")


def _shape_error(name: str, received: str, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"`{name}` must have the shape {tuple(shape)}, as this optimizer stores it for these parameters. Received: "
        f"{received}"
    )


def _placed_like(x: Any, like: Any) -> Any:
    """A copy of `x` with the dtype and the sharding of `like`."""
    return device_put_like(jnp.array(x, dtype=like.dtype), like)
