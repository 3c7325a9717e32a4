"""Packed trees: many small arrays in one buffer for each dtype, so that a thousand arrays cost a step as much as one.

A step over small arrays spends most of its time on their dispatch. A rule that acts on each element alone does not
depend on where an array ends, so it runs on the buffers directly. Where something depends on single arrays (a rule
that needs norms or shapes, a clip of each array by its own norm, a constraint, decay of some arrays only), the compiled
step unpacks the buffers and packs the results.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.interpreters import ad, batching, mlir

from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.paths import keyed_leaves, leaves_by_path, path_of
from jaxopt_keras.language.places import platform_of
from jaxopt_keras.packing.parts import Arrangement, Form, Part, any_gap, arrangement_of, filled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A pytree of arrays, stored as flat buffers by dtype name and as loose arrays, which are in no buffer.

    It is itself a pytree, with the buffers and the loose arrays as leaves.
    """

    buffers: dict[str, Array]  # "float32", and where there are several of a dtype "float32_1" and so on
    loose: list[Any]
    arrangement: Arrangement = field(metadata={"static": True})

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.arrangement.parts

    @property
    def treedef(self) -> Any:
        return self.arrangement.treedef

    def unpack(self) -> Any:
        """Return the tree of arrays."""
        pieces: dict[str, Any] = {"": iter(self.loose)}
        pieces |= {name: iter(self._pieces(name)) for name in self.buffers}
        found = [(next(pieces[part.buffer]), part) for part in self.parts]
        arrays = [x.reshape(part.shape) if part.buffer else x for x, part in found]
        return jax.tree.unflatten(self.treedef, arrays)

    def _pieces(self, name: str, gaps: bool = False) -> list[Array]:
        """The flat arrays in a buffer; with `gaps`, what is between them."""
        sizes, are_gaps = zip(*self.arrangement.pieces[name], strict=True)
        pieces = unpack_buffer(self.buffers[name], sizes)
        return [x for x, is_gap in zip(pieces, are_gaps, strict=True) if is_gap == gaps]

    @classmethod
    def of_loose(cls, tree: Any) -> "Packed":
        """Return `tree` without buffers."""
        return pack_some(tree, lambda key, leaf: False)

    def loosened(self, name: str) -> "Packed":
        """Return the same tree without the buffer `name`: its arrays are loose."""
        pieces, loose = iter(_read(self.buffers[name], name, self.arrangement)), iter(self.loose)
        arrays = [next(pieces if part.buffer else loose) for part in self.parts if part.buffer in ("", name)]
        parts = tuple(part._replace(buffer="", offset=0) if part.buffer == name else part for part in self.parts)
        buffers = {other: x for other, x in self.buffers.items() if other != name}
        return Packed(buffers, arrays, arrangement_of(parts, self.treedef))

    def tightened(self, name: str, end: Arrangement) -> "Packed":
        """Return the same tree with one more buffer, that of the arrangement `end`; its arrays are loose in `self`."""
        wanted = [new if new.buffer == name else old for old, new in zip(self.parts, end.parts, strict=True)]
        loose = [new for old, new in zip(self.parts, wanted, strict=True) if not old.buffer]
        inside = [x for x, part in zip(self.loose, loose, strict=True) if part.buffer]
        outside = [x for x, part in zip(self.loose, loose, strict=True) if not part.buffer]
        buffer = _joined(inside, end.pieces[name])
        return Packed(self.buffers | {name: buffer}, outside, arrangement_of(tuple(wanted), self.treedef))

    def like(self, tree: Any) -> "Packed":
        """Pack `tree`, which has the same structure and shapes, in the same way.

        Raises:
            ValueError: if `tree` has another structure or other shapes.
        """
        try:
            leaves = self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError):
            leaves = []
        is_whole = [hasattr(x, "shape") or not part.buffer for x, part in zip(leaves, self.parts, strict=False)]
        if len(leaves) != len(self.parts) or not all(is_whole):
            raise ValueError(f"`tree` must have the structure {self.treedef}. Received: {jax.tree.structure(tree)}")
        gaps = {name: self._pieces(name, gaps=True) for name, some in self.arrangement.pieces.items() if any_gap(some)}
        return _pack_leaves(leaves, self.arrangement, gaps=gaps)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(buffer: Array, name: str, arrangement: Arrangement) -> list[Array]:
    """The arrays of one buffer."""
    pieces = Packed({name: buffer}, [], arrangement)._pieces(name)
    parts = [part for part in arrangement.parts if part.buffer == name]
    return [x.reshape(part.shape) for x, part in zip(pieces, parts, strict=True)]


@functools.partial(jax.jit, static_argnums=1)
def _joined(arrays: list[Any], pieces: tuple[tuple[int, bool], ...]) -> Array:
    return _join_by_jax(filled(arrays, pieces))


def unpacked(tree: Any) -> Any:
    """Return the tree of arrays of `tree`, which may be packed or not."""
    return tree.unpack() if isinstance(tree, Packed) else tree


def packed_like(old: Any, new: Any) -> Any:
    """Return the tree `new`, packed if `old` is packed, whose structure it has."""
    return old.like(new) if isinstance(old, Packed) else new


def pack(params: Any) -> Packed:
    """Pack a pytree of arrays into one flat buffer for each dtype. Any kernel takes the result as parameters.

    Args:
        params: a pytree of arrays. Those that are neither floats nor complex numbers stay loose, and are not updated.

    Gradients with respect to packed parameters are packed too:

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

    On a TPU matrices consist of tiles, and a buffer does not: a model copies packed matrices in every step, which
    takes longer than the packed step saves. A warning says so.

    Raises:
        TypeError: if a leaf is not an array.
    """
    on_tpu = [path for path, p in leaves_by_path(params) if getattr(p, "ndim", 0) > 1 and platform_of(p) == "tpu"]
    if on_tpu:
        warnings.warn(
            "On a TPU `pack` is for arrays of one axis: packed matrices are copied in every step. Received: "
            f"{len(on_tpu)} arrays of more axes, the first at `{on_tpu[0]}`. Leave them out of the tree.",
            stacklevel=2,
        )
    return pack_some(params, lambda key, leaf: is_inexact(leaf))


def pack_some(params: Any, is_packed: Callable[[Any, Any], bool], form: Form = Form()) -> Packed:  # noqa: B008  # immutable
    """Pack `params`, but keep the leaves for which `is_packed(key, leaf)` is False loose."""
    keyed, treedef = keyed_leaves(params), jax.tree.structure(params)
    parts, ends, numbers = [], Counter[str](), Counter[str]()
    for key, leaf in keyed:
        path = path_of(key)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise TypeError(f"`params` must be a pytree of arrays. Received: {leaf!r} at `{path}`")
        buffer, start = "", 0
        if is_packed(key, leaf):
            dtype = str(leaf.dtype)
            buffer = _buffer(dtype, numbers[dtype])
            if (start := form.place(ends[buffer], leaf)) is None:
                numbers[dtype] += 1
                buffer, start = _buffer(dtype, numbers[dtype]), 0
            ends[buffer] = start + leaf.size
        parts.append(Part(path, buffer, tuple(leaf.shape), start))
    leaves = [leaf for _, leaf in keyed]
    inside = [leaf for leaf, part in zip(leaves, parts, strict=True) if part.buffer]
    join = _join_by_numpy if all(map(_is_on_host_cpu, inside)) else _join_by_jax
    return _pack_leaves(leaves, arrangement_of(tuple(parts), treedef), join)


def _buffer(dtype: str, number: int) -> str:
    return f"{dtype}_{number}" if number else dtype


@functools.partial(jax.jit, inline=True)
def _join_by_jax(arrays: list[Any]) -> Array:
    return pack_buffer([jnp.ravel(x) for x in arrays])


def _join_by_numpy(arrays: list[Any]) -> Array:
    """Join arrays without a compilation, which for a thousand arrays takes seconds."""
    return jnp.array(np.concatenate([np.asarray(x).reshape(-1) for x in arrays]))


def _is_on_host_cpu(x: Any) -> bool:
    """Whether NumPy can read `x` without a transfer: it is on JAX's first device, and that is a CPU."""
    if isinstance(x, Tracer) or not isinstance(x, Array):
        return isinstance(x, np.ndarray)
    first, is_key = jax.devices()[0], jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return first.platform == "cpu" and x.sharding.device_set == {first} and not is_key


def _pack_leaves(
    leaves: list[Any], arrangement: Arrangement, join: Any = _join_by_jax, gaps: dict[str, list[Any]] | None = None
) -> Packed:
    """Pack arrays.

    Args:
        gaps: what is in the gaps of each buffer that has some. None: zeros.
    """
    flat: dict[str, list[Any]] = {"": []}
    for part, leaf in zip(arrangement.parts, leaves, strict=True):
        if hasattr(leaf, "shape") and tuple(leaf.shape) != part.shape:  # a loose one may be None
            raise ValueError(f"`{part.path}` must have the shape {part.shape}. Received: {tuple(leaf.shape)}")
        flat.setdefault(part.buffer, []).append(leaf)
    loose = flat.pop("")
    gaps = gaps or {}
    pieces = {name: filled(x, arrangement.pieces[name], gaps.get(name)) for name, x in flat.items()}
    return Packed({name: join(x) for name, x in pieces.items()}, loose, arrangement)


@functools.partial(jax.jit, static_argnums=1)
def unpack_buffer(buffer: Array, sizes: tuple[int, ...]) -> list[Array]:
    """Split a flat array. The gradient is one concatenation."""
    return unpack_p.bind(buffer, sizes=sizes)


Primitive = type(lax.add_p)  # the class of `jax.extend.core`, whose import takes 0.1 s, since it imports Pallas

# A primitive, since the native engine lowers it better on a CPU (engine/native/unpack.py). The engine recognizes it,
# and `pack_buffer`, by name.
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
    """Join flat arrays into one, the inverse of `unpack_buffer`."""
    return concatenate(arrays)


def concatenate(arrays: list[Array]) -> Array:
    """Concatenate arrays, 64 at a time: XLA takes seconds to compile a concatenation of a thousand."""
    while len(arrays) > 1:
        arrays = [jnp.concatenate(arrays[i : i + _AT_ONCE]) for i in range(0, len(arrays), _AT_ONCE)]
    return arrays[0]


_AT_ONCE = 64
