"""Cheap random numbers for rounding: a hash of the array's name, the step and the element's index.

They need no key in the state and cost a few integer operations inside the same loop. They do not depend on the device
or the sharding, and a repeated step draws the same numbers.
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
    """Return a uint32 seed for each of `names`: it differs between arrays and between steps."""
    hashes = np.array([zlib.crc32(f"{seed}/{name}".encode()) for name in names], np.uint32)
    return mix(jnp.asarray(hashes) + jnp.asarray(step).astype(jnp.uint32))


def bits(shape: tuple[int, ...], seed: Array) -> Array:
    """Return 32 random bits for every element. The upper bits are of better quality: use those first.

    One round of mixing is enough, since the seed is mixed well and changes with every step.
    """
    x = flat_index(shape) * jnp.uint32(0x9E3779B1) + seed
    return (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)


@functools.partial(jax.jit, static_argnums=0)  # the native engine recognizes this function by name
def flat_index(shape: tuple[int, ...]) -> Array:
    """Return the flat index of every element, modulo 2^32; computed axis by axis, so that it can be sharded."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def uniform(shape: tuple[int, ...], seed: Array) -> Array:
    """Return float32 numbers in [0, 1), multiples of 2^-24."""
    return (bits(shape, seed) >> 8).astype(jnp.float32) * 2.0**-24


def mix(x: Array) -> Array:
    """Apply the finalizer of MurmurHash3 (Appleby 2011): every input bit changes half of the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
