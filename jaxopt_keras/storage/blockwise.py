"""Slots in a few bits: each block of the last axis has one float32 scale, the greatest size in it.

An integer code is a float with few bits, as telephony's A-law is: with y = span |x| / scale + least,

    c = (bits(y) - bits(least)) >> shift, rounded stochastically        stored, with the sign of x
    x = sign(c) scale (y - least) / span                                where bits(y) = bits(least) + (c << shift)

so near zero the steps are equal, and above `least` they are in proportion to the number: from each power of two to the
next 16 (int8) or 2 (int4; 1 for second moments). Second moments have no sign, and more range for it: their root is in a
denominator, and with equal steps most would be 0 there. For the same reason a positive one never becomes 0. All this is
an addition and a shift, where a root or a logarithm is a long instruction or a table. Blocks after Dettmers et al. 2021
(arXiv:2110.02861), four bits after Li et al. 2023 (arXiv:2309.01507), formulas instead of tables after FlashOptim 2026
(arXiv:2602.23349). Rounding is stochastic, since an average that moves by a thousandth of itself in each step would
stand still under rounding to nearest.

Blocks lie along the last axis, so that codes and scales are sharded as their parameter is, and rows remain rows.
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


class Code(NamedTuple):
    """A kind of code. `dtype`: of a code by itself."""

    name: str  # "int8", "int4", "float8" or "float16"
    signed: bool

    @property
    def dtype(self) -> Any:
        return {"float8": jnp.float8_e4m3fn, "float16": jnp.float16}.get(self.name) or jnp.dtype(
            "int8" if self.signed else "uint8"
        )

    @property
    def is_float(self) -> bool:
        """Whether the code is a float by itself; of second moments, the float is the root."""
        return self.name.startswith("float")

    @property
    def levels(self) -> int:
        """The code of the greatest number in a block."""
        bits = int(self.name[3:])
        return 2 ** (bits - 1) - 1 if self.signed else 2**bits - 1

    @property
    def shift(self) -> int:
        """How many of the 23 fraction bits of a float32 a code lacks."""
        return 19 if self.name == "int8" else 22 if self.signed else 23

    @property
    def least(self) -> float:
        """What code 0 stands for, before it is taken off: so many powers of two are below 1 as there are codes for."""
        return 0.5 ** ((self.levels + 1) >> (23 - self.shift))

    @property
    def span(self) -> float:
        """From code 0 to the last."""
        return _float_of(_bits_of(self.least) + (self.levels << self.shift)) - self.least

    @property
    def block(self) -> int:
        """The greatest length of a block."""
        return 128 if self.name == "int4" else 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """An array in codes. `shape` and `dtype` are those of what it stands for."""

    codes: Array  # (..., n), two in a byte for int4: (..., ceil(n / 2))
    scales: Array  # (..., blocks)
    code: Code = field(metadata={"static": True})
    length: int = field(metadata={"static": True})  # n

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.length)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.float32)


# Compiled as a whole where it is called outside a program (checkpoints, the stateful face's slots): operation by
# operation, every slot of another shape would wait for dozens of compilations. Inside a program it is inlined.
@functools.partial(jax.jit, static_argnames="code", inline=True)
def quantize(x: Array, code: Code, seed: Array | None = None) -> Blocks:
    """`x` in codes; without a `seed` rounded to nearest, which gives back the codes that `x` came out of."""
    n = x.shape[-1]
    x = x.astype(jnp.float32)
    size, length = jnp.abs(x), block_length(n, code.block)
    scales = jnp.max(_blocked(size, length), axis=-1)
    c = (_float_codes if code.is_float else _integer_codes)(size, scales, code, seed)
    c = (jnp.where(x < 0, -c, c) if code.signed else c).astype(code.dtype)
    return Blocks(pack_nibbles(c) if code.name == "int4" else c, scales, code, n)


@functools.partial(jax.jit, inline=True)
def dequantize(stored: Blocks) -> Array:
    """What the codes stand for, in float32."""
    code, n = stored.code, stored.length
    codes = unpack_nibbles(stored.codes, n, code.signed) if code.name == "int4" else stored.codes
    if code.is_float:
        x = codes.astype(jnp.float32) * (1 / _greatest(code))
        return (x if code.signed else x * x) * _spread(stored.scales, n, code)
    c = codes.astype(jnp.int32)
    size = jnp.abs(c) if code.signed else c
    y = jax.lax.bitcast_convert_type((size << code.shift) + _bits_of(code.least), jnp.float32)
    x = (y - code.least) * _spread(stored.scales * (1 / code.span), n, code)
    return jnp.where(c < 0, -x, x) if code.signed else x


def _integer_codes(size: Array, scales: Array, code: Code, seed: Array | None) -> Array:
    """The codes, as int32, of numbers of this size in blocks of these scales."""
    factor = jnp.where(scales > 0, code.span / scales, jnp.where(scales == 0, 0, jnp.nan))
    bits = jax.lax.bitcast_convert_type(size * _spread(factor, size.shape[-1], code) + code.least, jnp.uint32)
    part = jnp.uint32(1 << (code.shift - 1)) if seed is None else hash_rng.bits(size.shape, seed) >> (32 - code.shift)
    c = (bits - jnp.uint32(_bits_of(code.least)) + part) >> code.shift
    if not code.signed:
        c = jnp.maximum(c, jnp.minimum(jax.lax.bitcast_convert_type(size, jnp.uint32), 1))
    return jnp.minimum(c, code.levels).astype(jnp.int32)  # NaN and infinity have no code: they are in the scale


def _float_codes(size: Array, scales: Array, code: Code, seed: Array | None) -> Array:
    """As `_integer_codes`, for codes that are floats by themselves."""
    c = size / _spread(jnp.where(scales > 0, scales, 1), size.shape[-1], code)
    c = (c if code.signed else jnp.sqrt(c)) * _greatest(code)
    c = c if seed is None else stochastic(c, code.dtype, seed).astype(jnp.float32)
    lowest = 0.0 if code.signed else jnp.where(size > 0, float(jnp.finfo(code.dtype).smallest_subnormal), 0.0)
    return jnp.clip(jnp.where(jnp.isnan(c), _greatest(code), c), lowest, _greatest(code))


def _greatest(code: Code) -> float:
    return float(jnp.finfo(code.dtype).max) / 2  # half, so that no rounding gets past the end


def _bits_of(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def _float_of(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


def block_length(n: int, greatest: int) -> int:
    """The longest that divides `n`, or, where that is short, the greatest: the last block is then filled up."""
    if n <= greatest:
        return max(n, 1)
    divisor = next(b for b in range(greatest, 0, -1) if n % b == 0)
    return divisor if divisor >= greatest // 4 else greatest


def _blocked(x: Array, length: int) -> Array:
    """(..., n) as (..., blocks, length), filled up with zeros."""
    fill = -x.shape[-1] % length
    if fill:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, fill)])
    shape = (*x.shape[:-1], x.shape[-1] // length, length)
    spec = jax.typeof(x).sharding.spec  # says something where axes of the mesh are explicit
    return jax.lax.reshape(x, shape, out_sharding=_sharding(x, (*spec, None), shape[-2]))


def _spread(x: Array, n: int, code: Code) -> Array:
    """A number for each block, (..., blocks), as one for each element, (..., n).

    All arithmetic on elements has the shape of the array. In that of its blocks, XLA makes kernels of both shapes on a
    GPU, and keeps float32 arrays between them.
    """
    length = block_length(n, code.block)
    blocks = jnp.broadcast_to(x[..., None], (*x.shape, length))
    spec = jax.typeof(blocks).sharding.spec
    sharding = _sharding(blocks, spec[:-1], x.shape[-1])
    return jax.lax.reshape(blocks, (*x.shape[:-1], x.shape[-1] * length), out_sharding=sharding)[..., :n]


def _sharding(x: Array, spec: Any, blocks: int) -> Any:
    """Where the result of a reshape lies whose last axis, of explicit sharding, is cut between blocks.

    Raises:
        ValueError: if it is cut inside of them.
    """
    last = x.ndim - 1 if len(spec) > x.ndim else x.ndim - 2
    axes = spec[last] if last < len(spec) else None
    if axes is None:
        return None
    mesh = jax.typeof(x).sharding.mesh
    shards = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))
    if blocks % shards:
        raise ValueError(
            f"Blocks of a quantized slot must not straddle shards. Received: {blocks} blocks along an axis that is "
            f'sharded {shards} times. Shard another axis of the parameter, or keep the slot in "bfloat16".'
        )
    return NamedSharding(mesh, PartitionSpec(*spec))


@jax.jit  # by these two names the native engine knows them
def pack_nibbles(c: Array) -> Array:
    """Codes of four bits, two in a byte: the even places in its lower half."""
    if c.shape[-1] % 2:
        c = jnp.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, 1)])
    c = c.astype(jnp.uint8) & 15
    return c[..., 0::2] | (c[..., 1::2] << 4)


@functools.partial(jax.jit, static_argnums=(1, 2))
def unpack_nibbles(pairs: Array, n: int, signed: bool) -> Array:
    halves = (
        pairs[..., None] >> jnp.array([0, 4], jnp.uint8)[(None,) * pairs.ndim]
    ) & 15  # `stack` would make an array
    c = halves.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])[..., :n]
    return ((c ^ 8).astype(jnp.int8) - 8) if signed else c
