"""A saved value in the form that an optimizer keeps it in: its shape checked, its dtype or its codes changed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint.names import Coded, Decay
from jaxopt_keras.language.numerics import Complemented, Complements
from jaxopt_keras.stateful.state_views import at_home
from jaxopt_keras.storage import formats, masters
from jaxopt_keras.storage.blockwise import Blocks, dequantize

MASTERS = {"float32": "float32", "int16": "bf16+16", "int8": "bf16+8"}  # by the dtype of the slot


def formed(name: str, saved: Any, like: Any, p: Any = None) -> Any:
    """`saved` as `like` is: its form, its dtype, and where it lies. `p`: the parameter, which a master corrects.

    Raises:
        ValueError: if it has another shape. TypeError: if it is of another kind of number.
    """
    if isinstance(like, (Complemented, Complements)):
        value, complement = saved if isinstance(saved, Decay) else (saved, 1 - np.asarray(saved))
        return type(like)(formed(name, value, like.value), formed(name, complement, like.complement))
    if isinstance(saved, Decay):
        saved = saved.value
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = formed(name, saved, jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if isinstance(saved, Coded):
        saved = _blocks(name, saved, like.shape)
        if isinstance(like, Blocks) and saved.code == like.code and saved.scales.shape == like.scales.shape:
            return jax.tree.map(lambda x, old: _settled(x, old), saved, like)
        saved = dequantize(saved)
    _check(name, saved, like)
    if name.endswith(f"/{masters.MASTER}") and saved.dtype != like.dtype:
        whole = masters.join(p, jnp.asarray(saved), MASTERS[str(saved.dtype)])
        return _settled(masters.split(whole, MASTERS[str(like.dtype)], p.dtype)[1], like)
    if isinstance(like, Blocks):
        coded = formats.quantize_like(jnp.asarray(saved).astype(jnp.float32), like)
        return jax.tree.map(_settled, coded, like)
    return _settled(saved.astype(like.dtype), like)


def _blocks(name: str, saved: Coded, shape: tuple[int, ...]) -> Blocks:
    """What was saved as codes of a slot of this shape."""
    packed = saved.code.name == "int4"
    n = shape[-1] if shape else 0
    if tuple(saved.codes.shape) != (*shape[:-1], -(-n // 2) if packed else n) or not shape:
        raise _misfit(name, f"codes of shape {tuple(saved.codes.shape)}", shape)
    return Blocks(jnp.asarray(saved.codes), jnp.asarray(saved.scales), saved.code, n)


def _check(name: str, saved: Any, like: Any) -> None:
    if tuple(saved.shape) != tuple(like.shape):
        raise _misfit(name, f"shape {tuple(saved.shape)}", like.shape)
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    rank = [next((i for i, kind in enumerate(kinds) if jnp.issubdtype(x.dtype, kind)), -1) for x in (saved, like)]
    corrected = name.endswith(f"/{masters.MASTER}")
    if rank[0] > rank[1] and not corrected:
        raise TypeError(f"`{name}` must fit into {like.dtype}. Received: an array of {saved.dtype}")


def _misfit(name: str, received: str, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"`{name}` must have the shape {tuple(shape)}, as this optimizer keeps it for these parameters. Received: "
        f"{received}"
    )


def _settled(x: Any, like: Any) -> Any:
    """An array of its own, where `like` lies."""
    return at_home(jnp.array(x, dtype=like.dtype), like)
