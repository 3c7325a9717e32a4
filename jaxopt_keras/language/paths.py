"""The paths of leaves in a tree: patterns are searched for in them, and checkpoints name arrays by them."""

from typing import Any

import jax


def path_of(key: Any) -> str:
    """Return the path of a leaf from its `jax.tree_util` key; "" for a bare array.

    >>> tree = {"dense": {"kernel": 1.0}, "layers": [2.0]}
    >>> [path_of(key) for key, _ in jax.tree_util.tree_leaves_with_path(tree)], path_of(())
    (['dense/kernel', 'layers/0'], '')
    """
    return jax.tree_util.keystr(key, simple=True, separator="/")
