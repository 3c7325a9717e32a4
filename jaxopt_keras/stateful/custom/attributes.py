"""The attributes of a user's class, deeply: what hooks change there, and how to undo it.

Hooks are traced once, so that Python code in them runs once, not in every step. A count in a plain attribute would stay
at 1, and an array there would be a tracer.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxopt_keras.stateful.custom.overrides import is_library
from jaxopt_keras.stateful.variable import ArrayLike

CONTAINERS = (list, dict, set, deque)
FOREIGN = ("jax", "jaxlib", "numpy", "keras", "tf_keras", "flax", "optax", "torch", "tensorflow", "builtins")


class Attributes:
    """The attributes of an object as they are now: the contents of each container, and each number and array.

    Args:
        root: an optimizer. Its own attributes are left out: the library's.
        others: more objects whose attributes are the user's too, such as optimizers that this one wraps.
    """

    def __init__(self, root: Any, *others: Any) -> None:
        self.roots = (root, *others)
        self.contents: dict[int, tuple[Any, Any]] = {}  # id -> container or object, a copy of its content
        self.leaves: dict[str, Any] = {}
        for path, x in walk(*self.roots):
            if isinstance(x, CONTAINERS):
                self.contents[id(x)] = x, x.copy()
            elif is_leaf(x):
                self.leaves[path] = x
            elif is_users(x) or any(x is root for root in self.roots):
                self.contents[id(x)] = x, dict(own(x))

    def changed(self, other: "Attributes") -> str | None:
        """Return the path of a number or array that is not the same in `other`, or None."""
        for path in {**self.leaves, **other.leaves}:
            if not same(self.leaves.get(path, self), other.leaves.get(path, self)):
                return path
        return None

    def restore(self) -> None:
        """Set everything back."""
        for x, content in self.contents.values():
            if isinstance(x, (list, deque)):
                x.clear()
                x.extend(content)
            elif isinstance(x, (dict, set)):
                x.clear()
                x.update(content)
            else:
                for name in own(x).keys() - content.keys():
                    del x.__dict__[name]
                x.__dict__.update(content)


def own(x: Any) -> dict[str, Any]:
    """Return the attributes that are the user's."""
    reserved = x.__dict__.get("_reserved", ())
    return {name: value for name, value in x.__dict__.items() if name not in reserved and name != "_reserved"}


def walk(*roots: Any) -> Iterator[tuple[str, Any]]:
    """Yield each object that is reachable from the attributes, with its path, such as `moments[0]`.

    Objects of other libraries are not entered.
    """
    seen: set[int] = set()
    waiting = [(f"inner[{i - 1}]" if i else "", x) for i, x in reversed([*enumerate(roots)])]
    while waiting:
        path, x = waiting.pop()
        if not is_leaf(x):
            if id(x) in seen:
                continue
            seen.add(id(x))
        yield path, x
        waiting += [*reversed([*parts(path, x, any(x is root for root in roots))])]


def parts(path: str, x: Any, is_root: bool) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a container or of an object of the user's."""
    if isinstance(x, (list, tuple, deque)):
        yield from ((f"{path}[{i}]", y) for i, y in enumerate(x))
    elif isinstance(x, dict):
        yield from ((f"{path}[{key if isinstance(key, str) else i!r}]", y) for i, (key, y) in enumerate(x.items()))
    elif is_root or is_users(x):
        yield from ((f"{path}.{name}".lstrip("."), y) for name, y in own(x).items())


def is_leaf(x: Any) -> bool:
    """Whether `x` is compared by value: a number or an array."""
    return isinstance(x, (bool, int, float, complex, np.ndarray, np.generic, jax.Array))


def is_users(x: Any) -> bool:
    """Whether `x` is an object of a class of the user's: none of its bases is another library's."""
    known = [c for c in type(x).__mro__ if c is not object]
    entered = hasattr(x, "__dict__") and not isinstance(x, (type, ArrayLike)) and not callable(x)
    return entered and not any(is_library(c) or c.__module__.partition(".")[0] in FOREIGN for c in known)


def same(x: Any, y: Any) -> bool:
    if x is y:
        return True
    numbers = (bool, int, float, complex)
    return isinstance(x, numbers) and isinstance(y, numbers) and (x == y or x != x and y != y)
