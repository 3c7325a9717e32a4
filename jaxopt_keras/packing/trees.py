"""Many small arrays as one buffer for each dtype: a thousand of them then cost a step what one costs.

Most of the time of a step over small arrays is spent on handing the arrays over, one by one. A rule that acts on each
element alone does not see where one array ends, so it runs on the buffers as they are. Where something does see it (a
rule that needs norms or shapes, a clip of each array by its own norm, a constraint, decay of some arrays only) the
arrays are cut out inside the compiled step and put together again.
"""

import functools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.interpreters import ad, batching, mlir

from jaxopt_keras.language.paths import path_of


class Part(NamedTuple):
    """One array of a packed tree."""

    path: str
    buffer: str  # "": a loose array, in no buffer
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The layout of a packed tree. Interned by `arrangement_of`, so that `jit` compares layouts by identity."""

    parts: tuple[Part, ...]
    treedef: Any

    def __reduce__(self) -> Any:
        return arrangement_of, (self.parts, self.treedef)


def arrangement_of(parts: tuple[Part, ...], treedef: Any) -> Arrangement:
    return _arrangements.setdefault((parts, treedef), Arrangement(parts, treedef))


_arrangements: weakref.WeakValueDictionary[Any, Arrangement] = weakref.WeakValueDictionary()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A pytree of arrays as flat buffers, by the name of their dtype, and loose arrays, which are in no buffer.

    It is itself a pytree, with the buffers and the loose arrays as leaves.
    """

    buffers: dict[str, Array]
    loose: list[Any]
    arrangement: Arrangement = field(metadata={"static": True})

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.arrangement.parts

    @property
    def treedef(self) -> Any:
        return self.arrangement.treedef

    def unpack(self) -> Any:
        """The tree of arrays."""
        pieces: dict[str, Any] = {"": iter(self.loose)}
        for name, buffer in self.buffers.items():
            sizes = tuple(part.size for part in self.parts if part.buffer == name)
            pieces[name] = iter(unpack_buffer(buffer, sizes))
        found = [(next(pieces[part.buffer]), part) for part in self.parts]
        arrays = [x.reshape(part.shape) if part.buffer else x for x, part in found]
        return jax.tree.unflatten(self.treedef, arrays)

    def like(self, tree: Any) -> "Packed":
        """A tree of the same structure and shapes, packed in the same way.

        Raises:
            ValueError: if it has another structure, or a shape is another.
        """
        if jax.tree.structure(tree) != self.treedef:
            raise ValueError(f"`tree` must have the structure {self.treedef}. Received: {jax.tree.structure(tree)}")
        return _pack_leaves(jax.tree.leaves(tree), self.arrangement)


def unpacked(tree: Any) -> Any:
    """A tree of arrays, packed or not."""
    return tree.unpack() if isinstance(tree, Packed) else tree


def pack(params: Any) -> Packed:
    """A pytree of arrays as one flat buffer for each dtype, which any kernel takes in its place.

    Differentiate with respect to it, and the gradients are packed too:

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> params = jk.pack({"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    >>> params.buffers["float32"].shape
    (8,)
    >>> kernel = jk.sgd(0.5)
    >>> state = kernel.init(params)
    >>> grads = jax.grad(lambda q: jnp.sum(q.unpack()["b"] * 3))(params)
    >>> params, state = kernel.step(params, state, grads)
    >>> params.unpack()["b"].tolist()
    [-1.5, -1.5]

    Raises:
        TypeError: for a leaf that is no array.
    """
    return pack_some(params, lambda key, leaf: True)


def pack_some(params: Any, is_packed: Callable[[Any, Any], bool]) -> Packed:
    """`pack`, with the leaves for which `is_packed(key, leaf)` is False kept loose."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
    parts = []
    for key, leaf in keyed:
        path = path_of(key)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(f"`params` must be a pytree of arrays. Received: {leaf!r} at `{path}`")
        parts.append(Part(path, str(leaf.dtype) if is_packed(key, leaf) else "", tuple(leaf.shape)))
    leaves = [leaf for _, leaf in keyed]
    inside = [leaf for leaf, part in zip(leaves, parts, strict=True) if part.buffer]
    return _pack_leaves(
        leaves,
        arrangement_of(tuple(parts), treedef),
        _join_by_numpy if all(map(_is_on_host_cpu, inside)) else _join_by_jax,
    )


def _join_by_jax(arrays: list[Any]) -> Array:
    return pack_buffer([jnp.ravel(x) for x in arrays])


def _join_by_numpy(arrays: list[Any]) -> Array:
    """It need not compile, which for a thousand arrays takes seconds."""
    return jnp.array(np.concatenate([np.asarray(x).reshape(-1) for x in arrays]))


def _is_on_host_cpu(x: Any) -> bool:
    """Whether it lies where NumPy finds it: on JAX's first device, a CPU."""
    if isinstance(x, Tracer) or not isinstance(x, Array):
        return isinstance(x, np.ndarray)
    first, is_key = jax.devices()[0], jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return first.platform == "cpu" and x.sharding.device_set == {first} and not is_key


def _pack_leaves(
    leaves: list[Any], arrangement: Arrangement, join: Callable[[list[Any]], Array] = _join_by_jax
) -> Packed:
    flat: dict[str, list[Any]] = {"": []}
    for part, leaf in zip(arrangement.parts, leaves, strict=True):
        if tuple(leaf.shape) != part.shape:
            raise ValueError(f"`{part.path}` must have the shape {part.shape}. Received: {tuple(leaf.shape)}")
        flat.setdefault(part.buffer, []).append(leaf)
    loose = flat.pop("")
    return Packed({name: join(x) for name, x in flat.items()}, loose, arrangement)


@functools.partial(jax.jit, static_argnums=1)
def unpack_buffer(buffer: Array, sizes: tuple[int, ...]) -> list[Array]:
    """A flat array in pieces. The gradient is one concatenation."""
    return unpack_p.bind(buffer, sizes=sizes)


Primitive = type(lax.add_p)  # the class in `jax.extend.core`, which costs 0.1 s to import: it brings Pallas

# A primitive of its own, since on a CPU the native engine has a better way (engine/native/unpack.py). The engine knows
# it, and `pack_buffer`, by name.
unpack_p = Primitive("unpack_buffer")
unpack_p.multiple_results = True


@unpack_p.def_impl
def split(buffer: Array, sizes: tuple[int, ...]) -> list[Array]:
    return [*lax.split(buffer, sizes)]


@unpack_p.def_abstract_eval
def _(buffer: Any, sizes: tuple[int, ...]) -> Any:
    return jax.make_jaxpr(functools.partial(split, sizes=sizes))(buffer).out_avals


def _transposed(cotangents: Any, _: Any, sizes: tuple[int, ...]) -> list[Array]:
    return [pack_buffer([ad.instantiate_zeros(x) for x in cotangents])]


def _batched(buffers: Any, axes: Any, sizes: tuple[int, ...]) -> Any:
    return lax.split(buffers[0], sizes, axis=1 - axes[0]), axes * len(sizes)


ad.deflinear2(unpack_p, _transposed)
batching.primitive_batchers[unpack_p] = _batched
mlir.register_lowering(unpack_p, mlir.lower_fun(split, multiple_results=True))


@jax.jit
def pack_buffer(arrays: list[Array]) -> Array:
    """The other way round."""
    return concatenate(arrays)


def concatenate(arrays: list[Array]) -> Array:
    """All of them in a row. By the dozen, since a concatenation of a thousand takes XLA seconds to compile."""
    while len(arrays) > 1:
        arrays = [jnp.concatenate(arrays[i : i + _MOST_AT_ONCE]) for i in range(0, len(arrays), _MOST_AT_ONCE)]
    return arrays[0]


_MOST_AT_ONCE = 64
