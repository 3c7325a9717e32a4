"""Cheap random numbers for rounding: a hash of the element's index, of the step and of the array's name.

They need no key in the state, cost a few integer operations inside the same loop, are the same on every device and
whatever the sharding, and a step that is run again draws the same ones.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def seeds(seed: int, names: Sequence[str], step: Any) -> Array:
    """What tells the draws of each array at one step from all others: a number for each name."""
    codes = np.array([zlib.crc32(f"{seed}/{name}".encode()) for name in names], np.uint32)
    return mix(jnp.asarray(codes) + jnp.asarray(step).astype(jnp.uint32))


def bits(shape: tuple[int, ...], seed: Array) -> Array:
    """32 random bits for every element, the upper ones the better: use those.

    One round of mixing is enough for them: the seed, which is mixed well, changes with every step.
    """
    x = flat_index(shape) * jnp.uint32(0x9E3779B1) + seed
    return (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)


@functools.partial(jax.jit, static_argnums=0)  # by this name the native engine knows it
def flat_index(shape: tuple[int, ...]) -> Array:
    """The place of every element in a row of them all, modulo 2^32; axis by axis, so that it can be sharded."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def uniform(shape: tuple[int, ...], seed: Array) -> Array:
    """Float32 numbers in [0, 1), multiples of 2^-24."""
    return (bits(shape, seed) >> 8).astype(jnp.float32) * 2.0**-24


def mix(x: Array) -> Array:
    """The finalizer of MurmurHash3 (Appleby 2011): every input bit changes half of the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
