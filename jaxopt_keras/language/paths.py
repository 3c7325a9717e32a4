"""The names of leaves in a tree: what patterns are searched for in, and what checkpoints call arrays."""

from typing import Any

import jax


def path_of(key: Any) -> str:
    """The path of a leaf, of the key that `jax.tree_util` gives it; of a bare array "".

    >>> tree = {"dense": {"kernel": 1.0}, "layers": [2.0]}
    >>> [path_of(key) for key, _ in jax.tree_util.tree_leaves_with_path(tree)], path_of(())
    (['dense/kernel', 'layers/0'], '')
    """
    return jax.tree_util.keystr(key, simple=True, separator="/")
