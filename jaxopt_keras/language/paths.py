"""The paths of leaves in a tree: patterns are searched for in them, and checkpoints name arrays by them.

Flax keeps a parameter in a box with metadata: `linen.Partitioned`, or an `nnx.Variable` in an `nnx.State`. A path
leaves the box out: `dense/kernel`, not `dense/kernel/value`.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.tree_util import GetAttrKey

IsLeaf = Callable[[Any], bool]

_INSIDE = GetAttrKey("value")  # the key of the array in its box
_BOXES = (("flax.core.meta", "AxisMetadata"), ("flax.nnx.variablelib", "Variable"))


def path_of(key: Any) -> str:
    """Return the path of a leaf from its `jax.tree_util` key; "" for a bare array.

    >>> tree = {"dense": {"kernel": 1.0}, "layers": [2.0]}
    >>> [path_of(key) for key, _ in jax.tree_util.tree_leaves_with_path(tree)], path_of(())
    (['dense/kernel', 'layers/0'], '')
    """
    return jax.tree_util.keystr(key, simple=True, separator="/")


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """Return the first regular expression that is found anywhere in a path (`re.search`), or None.

    This is the meaning of every pattern of the library.

    >>> first_match(["bias$", "^dense"], "dense/kernel"), first_match(["bias$"], "bias_1")
    ('^dense', None)
    """
    return next((pattern for pattern in patterns if re.search(pattern, path)), None)


def keyed_leaves(tree: Any, is_leaf: IsLeaf | None = None) -> list[tuple[Any, Any]]:
    """Return the leaves and their keys, as `jax.tree_util.tree_leaves_with_path`, but without the keys of boxes."""
    # Flax is never imported: without its modules there are no boxes.
    boxes = tuple(getattr(sys.modules[module], name, ()) for module, name in _BOXES if module in sys.modules)
    return [*_unboxed(tree, boxes, is_leaf or (lambda x: False))]


def _unboxed(tree: Any, boxes: Any, is_leaf: IsLeaf) -> Iterator[tuple[Any, Any]]:
    """Yield keys and leaves of `tree`, which may be a box itself; a box may contain a tree, with other boxes."""
    stops = lambda x: is_leaf(x) or (isinstance(x, boxes) and x is not tree)
    for key, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops):
        if key and isinstance(tree, boxes) and key[0] == _INSIDE:
            key = key[1:]
        if isinstance(x, boxes) and x is not tree and not is_leaf(x):
            yield from ((key + inner, leaf) for inner, leaf in _unboxed(x, boxes, is_leaf))
        else:
            yield key, x


def leaves_by_path(tree: Any, is_leaf: IsLeaf | None = None) -> list[tuple[str, Any]]:
    """Return the leaves of a tree with their paths, in the order of `jax.tree.leaves`."""
    return [(path_of(key), x) for key, x in keyed_leaves(tree, is_leaf)]


def map_by_path(function: Callable[[str, Any], Any], tree: Any, is_leaf: IsLeaf | None = None) -> Any:
    """Return a tree of `function(path, leaf)`.

    >>> map_by_path(lambda path, x: f"{path} {x}", {"dense": {"kernel": 1}})
    {'dense': {'kernel': 'dense/kernel 1'}}
    """
    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    return jax.tree.unflatten(structure, [function(path, x) for path, x in leaves_by_path(tree, is_leaf)])
