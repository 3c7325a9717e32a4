"""Slots in a few bits: each block of the last axis has one float32 scale, the greatest size in it.

    c = levels (|x| / scale)^(1/power), rounded stochastically between its neighbours   stored, with the sign of x
    x = sign(c) scale (|c| / levels)^power

The power gives small numbers the finer steps that they need: 2 for signed slots, 4 for non-negative ones, which are
second moments: their root is in a denominator, and with equal steps most would be 0 there. For the same reason a
positive number never becomes 0. Blocks after Dettmers et al. 2021 (arXiv:2110.02861), four bits after Li et al. 2023
(arXiv:2309.01507), powers instead of tables after FlashOptim 2026 (arXiv:2602.23349). Rounding is stochastic, since an
average that moves by a thousandth of itself in each step would stand still under rounding to nearest.

Blocks lie along the last axis, so that codes and scales are sharded as their parameter is, and rows remain rows.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_keras.storage import noise
from jaxopt_keras.storage.rounding import stochastic


class Code(NamedTuple):
    """A kind of code. `dtype`: of a code by itself."""

    name: str  # "int8", "int4", "float8" or "float16"
    signed: bool

    @property
    def power(self) -> int:
        if self.name.startswith("float"):  # these have finer steps near zero by themselves
            return 1 if self.signed else 2
        return 2 if self.signed else 4

    @property
    def dtype(self) -> Any:
        return {"float8": jnp.float8_e4m3fn, "float16": jnp.float16}.get(self.name) or jnp.dtype(
            "int8" if self.signed else "uint8"
        )

    @property
    def levels(self) -> float:
        """The code of the greatest number in a block."""
        if self.name.startswith("float"):
            return float(jnp.finfo(self.dtype).max) / 2  # half, so that no rounding gets past the end
        bits = int(self.name[3:])
        return float(2 ** (bits - 1) - 1 if self.signed else 2**bits - 1)

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


def encode(x: Array, code: Code, salt: Array | None = None) -> Blocks:
    """`x` in codes; without a `salt` rounded to nearest, which gives back what came out of codes."""
    n = x.shape[-1]
    blocks = _blocked(x.astype(jnp.float32), block_length(n, code.block))
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    ratio = jnp.abs(blocks) / jnp.where(scales > 0, scales, 1)[..., None]
    c = _code(ratio, code, salt)
    c = _joined(jnp.where(blocks < 0, -c, c).astype(code.dtype), n)
    return Blocks(_pairs(c) if code.name == "int4" else c, scales, code, n)


def decode(stored: Blocks) -> Array:
    """What the codes stand for, in float32."""
    code, n = stored.code, stored.length
    c = _unpaired(stored.codes, n, code.signed) if code.name == "int4" else stored.codes
    blocks = _blocked(c.astype(jnp.float32), block_length(n, code.block))
    x = _powered(jnp.abs(blocks) / code.levels, code.power) * stored.scales[..., None]
    return _joined(jnp.where(blocks < 0, -x, x), n)


def _code(ratio: Array, code: Code, salt: Array | None) -> Array:
    """The code, as a float32, of a number that is `ratio` times the greatest in its block."""
    c = ratio
    for _ in range(code.power.bit_length() - 1):
        c = jnp.sqrt(c)
    c = c * code.levels
    smallest = 1.0
    if code.name.startswith("float"):
        smallest = float(jnp.finfo(code.dtype).smallest_subnormal)
        c = c if salt is None else stochastic(c, code.dtype, salt).astype(jnp.float32)
    elif salt is None:
        c = jnp.round(c)
    else:  # the chance is in proportion to the numbers that the codes stand for, not to the codes
        below = jnp.floor(c)
        low, high = (_powered(k / code.levels, code.power) for k in (below, below + 1))
        up = noise.uniform(ratio.shape, salt) < (ratio - low) / (high - low)
        c = below + up.astype(jnp.float32)
    lowest = 0.0 if code.signed else jnp.where(ratio > 0, smallest, 0.0)
    # NaN and infinity have no code: they are in the scale.
    return jnp.clip(jnp.where(jnp.isnan(c), code.levels, c), lowest, code.levels)


def _powered(x: Array, power: int) -> Array:
    for _ in range(power.bit_length() - 1):
        x = x * x
    return x


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


def _joined(blocks: Array, n: int) -> Array:
    """The other way round."""
    *outer, count, length = blocks.shape
    spec = jax.typeof(blocks).sharding.spec
    flat = jax.lax.reshape(blocks, (*outer, count * length), out_sharding=_sharding(blocks, spec[:-1], count))
    return flat[..., :n]


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


def _pairs(c: Array) -> Array:
    """Codes of four bits, two in a byte: the even places in its lower half."""
    if c.shape[-1] % 2:
        c = jnp.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, 1)])
    c = c.astype(jnp.uint8) & 15
    return c[..., 0::2] | (c[..., 1::2] << 4)


def _unpaired(pairs: Array, n: int, signed: bool) -> Array:
    c = jnp.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])[..., :n]
    return ((c ^ 8).astype(jnp.int8) - 8) if signed else c
