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

Blocks are cut from the last axis, so that codes and scales are sharded like their parameter, and rows stay rows.
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

    codes: Array  # (..., n), two in a byte for int4: (..., ceil(n / 2))
    scales: Array  # (..., blocks)
    code: Code = field(metadata={"static": True})
    length: int = field(metadata={"static": True})  # n, of the last axis

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], self.length)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.float32)


# Jitted for calls outside a program (checkpoints, slots of the stateful face): run eagerly, each new shape would need
# dozens of compilations. Inside a program it is inlined.
@functools.partial(jax.jit, static_argnames="code", inline=True)
def quantize(x: Array, code: Code, seed: Array | None = None) -> Blocks:
    """Quantize `x`, rounding stochastically by the random `seed`, or to nearest without it.

    Rounding to nearest restores the codes of an `x` that was dequantized.
    """
    n = x.shape[-1]
    x = x.astype(jnp.float32)
    size, length = jnp.abs(x), block_length(n, code.block)
    scales = jnp.max(_to_blocks(size, length), axis=-1)
    c = (_float_codes if code.is_float else _integer_codes)(size, scales, code, seed)
    c = (jnp.where(x < 0, -c, c) if code.signed else c).astype(code.dtype)
    return Blocks(pack_nibbles(c) if code.name == "int4" else c, scales, code, n)


@functools.partial(jax.jit, inline=True)
def dequantize(stored: Blocks) -> Array:
    """Compute the float32 array from its codes and scales."""
    code, n = stored.code, stored.length
    codes = unpack_nibbles(stored.codes, n, code.signed) if code.name == "int4" else stored.codes
    if code.is_float:
        x = codes.astype(jnp.float32) * (1 / _greatest(code))
        return (x if code.signed else x * x) * _per_element(stored.scales, n, code)
    c = codes.astype(jnp.int32)
    size = jnp.abs(c) if code.signed else c
    y = jax.lax.bitcast_convert_type((size << code.shift) + _bits_of(code.least), jnp.float32)
    x = (y - code.least) * _per_element(stored.scales * (1 / code.span), n, code)
    return jnp.where(c < 0, -x, x) if code.signed else x


def _integer_codes(size: Array, scales: Array, code: Code, seed: Array | None) -> Array:
    """Compute int32 codes from absolute values and the scales of their blocks."""
    factor = jnp.where(scales > 0, code.span / scales, jnp.where(scales == 0, 0, jnp.nan))
    bits = jax.lax.bitcast_convert_type(size * _per_element(factor, size.shape[-1], code) + code.least, jnp.uint32)
    part = jnp.uint32(1 << (code.shift - 1)) if seed is None else hash_rng.bits(size.shape, seed) >> (32 - code.shift)
    c = (bits - jnp.uint32(_bits_of(code.least)) + part) >> code.shift
    if not code.signed:
        c = jnp.maximum(c, jnp.minimum(jax.lax.bitcast_convert_type(size, jnp.uint32), 1))
    return jnp.minimum(c, code.levels).astype(jnp.int32)  # NaN and infinity have no code: the scale carries them


def _float_codes(size: Array, scales: Array, code: Code, seed: Array | None) -> Array:
    """Compute the codes as `_integer_codes` does, for codes that are floats."""
    c = size / _per_element(jnp.where(scales > 0, scales, 1), size.shape[-1], code)
    c = (c if code.signed else jnp.sqrt(c)) * _greatest(code)
    c = c if seed is None else stochastic(c, code.dtype, seed).astype(jnp.float32)
    lowest = 0.0 if code.signed else jnp.where(size > 0, float(jnp.finfo(code.dtype).smallest_subnormal), 0.0)
    return jnp.clip(jnp.where(jnp.isnan(c), _greatest(code), c), lowest, _greatest(code))


def _greatest(code: Code) -> float:
    return float(jnp.finfo(code.dtype).max) / 2  # half, so that rounding cannot overflow


def _bits_of(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def block_length(n: int, greatest: int) -> int:
    """Return the longest block, at most `greatest`, that divides `n`.

    Where all divisors are shorter than a quarter of it, return `greatest`: the last block is then padded.
    """
    if n <= greatest:
        return max(n, 1)
    divisor = next(b for b in range(greatest, 0, -1) if n % b == 0)
    return divisor if divisor >= greatest // 4 else greatest


def _to_blocks(x: Array, length: int) -> Array:
    """Reshape (..., n) to (..., blocks, length), padded with zeros."""
    fill = -x.shape[-1] % length
    if fill:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, fill)])
    shape = (*x.shape[:-1], x.shape[-1] // length, length)
    spec = jax.typeof(x).sharding.spec  # empty, unless axes of the mesh are explicit
    return jax.lax.reshape(x, shape, out_sharding=_sharding(x, (*spec, None), shape[-2]))


def _per_element(x: Array, n: int, code: Code) -> Array:
    """Broadcast a number for each block, (..., blocks), to one for each element, (..., n).

    All arithmetic on elements then has the shape of the array. If some had the shape of the blocks, XLA on a GPU would
    make kernels of both shapes and store float32 arrays between them.
    """
    length = block_length(n, code.block)
    blocks = jnp.broadcast_to(x[..., None], (*x.shape, length))
    spec = jax.typeof(blocks).sharding.spec
    sharding = _sharding(blocks, spec[:-1], x.shape[-1])
    return jax.lax.reshape(blocks, (*x.shape[:-1], x.shape[-1] * length), out_sharding=sharding)[..., :n]


def _sharding(x: Array, spec: Any, blocks: int) -> Any:
    """Return the sharding of a reshape that splits the last axis into blocks, or None if that axis is not sharded.

    Raises:
        ValueError: if a block would straddle shards.
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
    c = halves.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])[..., :n]
    return ((c ^ 8).astype(jnp.int8) - 8) if signed else c
