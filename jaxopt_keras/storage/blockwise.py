"""Blockwise quantization: each block of the last axis has one float32 scale, its greatest absolute value.

An integer code is a small float, as in telephony's A-law. With y = span |x| / scale + least:

    c = (bits(y) - bits(least)) >> shift, rounded stochastically        stored, with the sign of x
    x = sign(c) scale (y - least) / span                                where bits(y) = bits(least) + (c << shift)

Near zero the quantization steps are equal. Above `least` they are proportional to the number: each power of two has 16
steps in int8, 2 in int4 and 1 in int4 without a sign. Second moments are stored without a sign, which gives them more
range: their root is a denominator, and equal steps would round most of them to 0. For the same reason a positive second
moment never becomes 0. The formula costs an addition and a shift; a root or a logarithm would cost a long instruction
or a table. Blocks follow Dettmers et al. 2021 (arXiv:2110.02861), four bits Li et al. 2023 (arXiv:2309.01507), and
formulas instead of tables FlashOptim 2026 (arXiv:2602.23349). Rounding is stochastic: rounded to nearest, an average
that moves by a thousandth of itself in each step would never move.

Blocks are cut from the last axis, so that codes and scales are sharded like their parameter, and rows stay rows; from
another one (`tiles`) where that suits the machine better.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_keras.storage import hash_rng
from jaxopt_keras.storage.rounding import stochastic
from jaxopt_keras.storage.tiles import Tiles, block_length, straddling


class Code(NamedTuple):
    """A code: how each quantized element is written in bits."""

    name: str  # "int8", "int4", "float8" or "float16"
    signed: bool

    @property
    def dtype(self) -> Any:
        """The dtype of one code, before two int4 codes are packed in a byte."""
        return {"float8": jnp.float8_e4m3fn, "float16": jnp.float16}.get(self.name) or jnp.dtype(
            "int8" if self.signed else "uint8"
        )

    @property
    def is_float(self) -> bool:
        """Whether the code is a float; for second moments it is the float of the root."""
        return self.name.startswith("float")

    @property
    def levels(self) -> int:
        """The code of the greatest number in a block."""
        bits = int(self.name[3:])
        return 2 ** (bits - 1) - 1 if self.signed else 2**bits - 1

    @property
    def shift(self) -> int:
        """The number of float32 fraction bits, of 23, that the code drops."""
        return 19 if self.name == "int8" else 22 if self.signed else 23

    @property
    def least(self) -> float:
        """The value y of code 0. The codes cover the powers of two from here to 1."""
        return 0.5 ** ((self.levels + 1) >> (23 - self.shift))

    @property
    def span(self) -> float:
        """The difference between the values y of the last code and of code 0."""
        greatest = np.int32(_bits_of(self.least) + (self.levels << self.shift)).view(np.float32)
        return float(greatest) - self.least

    @property
    def block(self) -> int:
        """The greatest length of a block."""
        return 128 if self.name == "int4" else 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """A block-quantized array. `shape` and `dtype` describe the dequantized array."""

    codes: Array  # (..., n, ...); of int4 without tiles two in a byte: half as long, rounded up
    scales: Array  # (..., blocks, ...)
    code: Code = field(metadata={"static": True})
    length: int = field(metadata={"static": True})  # n, of the axis that is cut
    tiles: Tiles | None = field(default=None, metadata={"static": True})  # None: blocks of the last axis

    @property
    def shape(self) -> tuple[int, ...]:
        axis = self.codes.ndim + (self.tiles.axis if self.tiles else -1)
        return (*self.codes.shape[:axis], self.length, *self.codes.shape[axis + 1 :])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.float32)


def foreign_blocks(x: Any, platform: str) -> str:
    """Describe the blocks of a slot that are those of another platform; "" for other slots."""
    if not isinstance(x, Blocks) or x.codes.ndim < 2:
        return ""
    if platform == "tpu":
        return "" if x.tiles else "blocks of the last axis, which are those of CPUs and GPUs"
    return f"blocks of {x.tiles}, which are those of TPUs" if x.tiles and x.tiles.axis != -1 else ""


def stored_dtype(code: Code, tiles: Tiles | None) -> Any:
    """Return the dtype of the array of codes. On tiles XLA packs those of four bits itself."""
    if code.name != "int4":
        return code.dtype
    return jnp.uint8 if tiles is None else jnp.dtype("int4" if code.signed else "uint4")


class Cut(NamedTuple):
    """The division of an array into blocks."""

    axis: int
    n: int  # the length of the axis
    block: int  # the length of a block

    @classmethod
    def of(cls, shape: tuple[int, ...], code: Code, tiles: Tiles | None) -> "Cut":
        if tiles is None:
            return cls(len(shape) - 1, shape[-1], block_length(shape[-1], code.block))
        axis = len(shape) + tiles.axis
        return cls(axis, shape[axis], tiles.block)

    @property
    def blocks(self) -> int:
        return -(-self.n // self.block)


# Jitted for calls outside a program (checkpoints, slots of the stateful face): run eagerly, each new shape would need
# dozens of compilations. Inside a program it is inlined.
@functools.partial(jax.jit, static_argnames=("code", "tiles"), inline=True)
def quantize(x: Array, code: Code, seed: Array | None = None, tiles: Tiles | None = None) -> Blocks:
    """Quantize `x`, rounding stochastically by the random `seed`, or to nearest without it.

    Rounding to nearest restores the codes of an `x` that was dequantized.
    """
    cut = Cut.of(x.shape, code, tiles)
    x = x.astype(jnp.float32)
    size = jnp.abs(x)
    scales = jnp.max(_to_blocks(size, cut), axis=cut.axis + 1)
    c = (_float_codes if code.is_float else _integer_codes)(size, scales, code, cut, seed)
    c = jnp.where(x < 0, -c, c) if code.signed else c
    if code.name == "int4" and tiles is None:
        c = pack_nibbles(c.astype(code.dtype))
    c = c.astype(stored_dtype(code, tiles))
    return Blocks(c, scales, code, cut.n, tiles)


@functools.partial(jax.jit, inline=True)
def dequantize(stored: Blocks) -> Array:
    """Compute the float32 array from its codes and scales."""
    code, codes, cut = stored.code, stored.codes, Cut.of(stored.shape, stored.code, stored.tiles)
    if code.name == "int4" and stored.tiles is None:
        codes = unpack_nibbles(codes, cut.n, code.signed)
    if code.is_float:
        x = codes.astype(jnp.float32) * (1 / _greatest(code))
        return (x if code.signed else x * x) * _per_element(stored.scales, cut)
    c = codes.astype(jnp.int32)
    size = jnp.abs(c) if code.signed else c
    y = jax.lax.bitcast_convert_type((size << code.shift) + _bits_of(code.least), jnp.float32)
    x = (y - code.least) * _per_element(stored.scales * (1 / code.span), cut)
    return jnp.where(c < 0, -x, x) if code.signed else x


def zeros(like: Array, code: Code, tiles: Tiles | None = None) -> Blocks:
    """Return the codes and scales of zeros, of the shape and sharding of `like`, without quantizing them."""
    if jax.typeof(like).sharding.mesh.empty:
        form = _form(like.shape, like.dtype, code, tiles)
    else:
        form = jax.eval_shape(functools.partial(quantize, code=code, tiles=tiles), like)
    return jax.tree.map(jnp.zeros_like, form)


@functools.lru_cache(maxsize=256)
def _form(shape: tuple[int, ...], dtype: Any, code: Code, tiles: Tiles | None) -> Any:
    """Return the shapes and dtypes of the codes and scales of an array on one device."""
    return jax.eval_shape(functools.partial(quantize, code=code, tiles=tiles), jax.ShapeDtypeStruct(shape, dtype))


def _integer_codes(size: Array, scales: Array, code: Code, cut: Cut, seed: Array | None) -> Array:
    """Compute int32 codes from absolute values and the scales of their blocks."""
    factor = jnp.where(scales > 0, code.span / scales, jnp.where(scales == 0, 0, jnp.nan))
    bits = jax.lax.bitcast_convert_type(size * _per_element(factor, cut) + code.least, jnp.uint32)
    part = jnp.uint32(1 << (code.shift - 1)) if seed is None else hash_rng.bits(size.shape, seed) >> (32 - code.shift)
    c = (bits - jnp.uint32(_bits_of(code.least)) + part) >> code.shift
    if not code.signed:
        c = jnp.maximum(c, jnp.minimum(jax.lax.bitcast_convert_type(size, jnp.uint32), 1))
    return jnp.minimum(c, code.levels).astype(jnp.int32)  # NaN and infinity have no code: the scale carries them


def _float_codes(size: Array, scales: Array, code: Code, cut: Cut, seed: Array | None) -> Array:
    """Compute the codes as `_integer_codes` does, for codes that are floats."""
    c = size / _per_element(jnp.where(scales > 0, scales, 1), cut)
    c = (c if code.signed else jnp.sqrt(c)) * _greatest(code)
    c = c if seed is None else stochastic(c, code.dtype, seed).astype(jnp.float32)
    lowest = 0.0 if code.signed else jnp.where(size > 0, float(jnp.finfo(code.dtype).smallest_subnormal), 0.0)
    return jnp.clip(jnp.where(jnp.isnan(c), _greatest(code), c), lowest, _greatest(code))


def _greatest(code: Code) -> float:
    return float(jnp.finfo(code.dtype).max) / 2  # half, so that rounding cannot overflow


def _bits_of(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def _to_blocks(x: Array, cut: Cut) -> Array:
    """Split the axis into (blocks, block), padded with zeros."""
    fill = cut.blocks * cut.block - x.shape[cut.axis]
    x = jnp.pad(x, [(0, fill if i == cut.axis else 0) for i in range(x.ndim)]) if fill else x
    return _resided(x, cut.axis, 1, (cut.blocks, cut.block))


def _per_element(x: Array, cut: Cut) -> Array:
    """Broadcast a number for each block to one for each element.

    All arithmetic on elements then has the shape of the array. If some had the shape of the blocks, XLA on a GPU would
    make kernels of both shapes and store float32 arrays between them.
    """
    axis, sides = cut.axis, (cut.blocks, cut.block)
    blocks = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[:axis], *sides, *x.shape[axis + 1 :]))
    return _shortened(_resided(blocks, axis, 2, (cut.blocks * cut.block,)), cut)


def _shortened(x: Array, cut: Cut) -> Array:
    return x if x.shape[cut.axis] == cut.n else jax.lax.slice_in_dim(x, 0, cut.n, axis=cut.axis)


def _resided(x: Array, axis: int, count: int, sides: tuple[int, ...]) -> Array:
    """Reshape `count` axes from `axis` on to others of these `sides`; the first of them is sharded as the first was.

    Raises:
        ValueError: if a block would straddle shards.
    """
    shape = (*x.shape[:axis], *sides, *x.shape[axis + count :])
    sharding = jax.typeof(x).sharding
    spec = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]  # without explicit axes of a mesh all are None
    if spec[axis] is None:
        return jax.lax.reshape(x, shape)
    names = (spec[axis],) if isinstance(spec[axis], str) else spec[axis]
    blocks, shards = min(x.shape[axis], sides[0]), math.prod(sharding.mesh.shape[name] for name in names)
    if blocks % shards:
        raise straddling(blocks, shards)
    spec[axis : axis + count] = [spec[axis], *[None] * (len(sides) - 1)]
    return jax.lax.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(*spec)))


@jax.jit  # the native engine recognizes this function and the next by name
def pack_nibbles(c: Array) -> Array:
    """Pack two codes of four bits in each byte, those of even index in its lower half."""
    if c.shape[-1] % 2:
        c = jnp.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, 1)])
    c = c.astype(jnp.uint8) & 15
    return c[..., 0::2] | (c[..., 1::2] << 4)


@functools.partial(jax.jit, static_argnums=(1, 2))
def unpack_nibbles(pairs: Array, n: int, signed: bool) -> Array:
    """Unpack the `n` codes of the last axis from bytes."""
    shifts = jnp.array([0, 4], jnp.uint8)[(None,) * pairs.ndim]
    halves = (pairs[..., None] >> shifts) & 15  # `stack` would write an array
    return _signed(halves.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])[..., :n], signed)


def _signed(c: Array, signed: bool) -> Array:
    return ((c ^ 8).astype(jnp.int8) - 8) if signed else c
