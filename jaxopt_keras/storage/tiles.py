"""The axis that blocks are cut from, and their length, for a machine and a shape.

The last axis is right for CPUs and GPUs, where its elements are neighbours. A TPU works on tiles of 8 x 128 elements
(sublanes and lanes), and blocks along lanes would have to be turned around and back: XLA then copies the parameter, the
gradient and the codes in every step. Blocks along sublanes are reduced in place.

On a mesh, blocks follow the shards, so that no block is on two devices.
"""

import itertools
import math
from typing import Any, NamedTuple

from jaxopt_keras.language.places import Place

SUBLANES, LANES = 8, 128
PACKED = 32  # sublanes of a tile of int8
SHORT = 16  # of a block: with fewer elements for each scale, scales cost more than codes save
WIDE = 4096  # the longest row that is one block where no shorter block fits


class Tiles(NamedTuple):
    """Blocks that are not those of the last axis, as `block_length` cuts them."""

    axis: int  # that is cut, counted from the last: -1, -2, ...
    block: int  # the length of a block

    def __str__(self) -> str:
        return f"{self.block} of axis {self.axis}"


def tiles_for(shape: tuple[int, ...], greatest: int, place: Place) -> Tiles | None:
    """Choose the blocks of an array; None for blocks of the last axis, as `block_length` cuts them.

    Args:
        greatest: the greatest length of a block.

    Raises:
        ValueError: if every choice has a block on two devices.
    """
    n, own = shape[-1], place.shard[-1]
    if place.platform == "tpu" and len(shape) > 1:
        found = _on_tpu(greatest, place.shard)
    else:
        if own == n or -(-n // block_length(n, greatest)) % (n // own) == 0:
            return None
        found = Tiles(-1, block_length(own, greatest))
    n, own = shape[found.axis], place.shard[found.axis]
    if own != n and (own % found.block or found.block < SHORT):
        raise straddling(-(-n // found.block), n // own)
    return found


def straddling(blocks: int, shards: int) -> ValueError:
    """Return the error for blocks on two devices."""
    return ValueError(
        f"Blocks of a quantized slot must not straddle shards. Received: {blocks} blocks along an axis that is "
        f'sharded {shards} times. Shard another axis of the parameter, or keep the slot in "bfloat16".'
    )


def block_length(n: int, greatest: int) -> int:
    """Return the longest block, at most `greatest`, that divides `n`.

    Where all divisors are shorter than a quarter of it, return `greatest`: the last block is then padded.
    """
    if n <= greatest:
        return max(n, 1)
    divisor = next(b for b in range(greatest, 0, -1) if n % b == 0)
    return divisor if divisor >= greatest // 4 else greatest


def layout(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the axes that a TPU lays along sublanes and along lanes: those that leave the fewest places empty."""
    last = range(len(shape) - 1, -1, -1)
    pairs = [(b, a) for a, b in itertools.permutations(last, 2)]  # of equal ones the first: the last axis along lanes
    return min(pairs, key=lambda pair: _places(shape, pair))


def _places(shape: tuple[int, ...], pair: tuple[int, int]) -> int:
    """Return the number of elements, with those that fill up the tiles."""
    sublanes, lanes = _filled(shape[pair[0]], SUBLANES), _filled(shape[pair[1]], LANES)
    return sublanes * lanes * math.prod(n for i, n in enumerate(shape) if i not in pair)


def _filled(n: int, step: int) -> int:
    return -(-n // step) * step


def stored_bytes(shape: tuple[int, ...], dtype: Any, platform: str) -> int:
    """Return the bytes that an array takes in memory: on a TPU it consists of whole tiles."""
    n = math.prod(shape)
    if platform == "tpu" and n:
        one_row = min(max(LANES, 2 ** (n - 1).bit_length()), SUBLANES * LANES)
        n = _places(shape, layout(shape)) if len(shape) > 1 else _filled(n, one_row)
    return -(-n // 2) if dtype.name in ("int4", "uint4") else n * dtype.itemsize


def _on_tpu(greatest: int, shard: tuple[int, ...]) -> Tiles:
    sublanes, lanes = (axis - len(shard) for axis in layout(shard))
    n, row = shard[sublanes], shard[lanes]
    if n <= greatest:
        return Tiles(sublanes, max(n, 1))
    fits = [b for step in (PACKED, SUBLANES) for b in range(greatest, greatest // 8, -step) if n % b == 0]
    if fits:
        return Tiles(sublanes, fits[0])
    return Tiles(lanes, row) if row <= WIDE else Tiles(sublanes, greatest)
