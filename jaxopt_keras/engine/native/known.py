"""Values of a phase by name, with the numbers of many arrays as one array.

Calls return the total of each array, and read its scalars. Sliced one by one, XLA would compile a kernel for each.
"""

from collections.abc import Iterable
from typing import Any

from jax import lax

from jaxopt_keras.packing.trees import concatenate


class Known(dict[Any, Any]):
    """Values by name. A tuple of the names of numbers is the name of an array of them.

    A number that is known in an array only is read from it. An array is put together from spans of others.
    """

    def __init__(self, names: Iterable[Any], values: Iterable[Any]) -> None:
        super().__init__()
        self._places: dict[Any, tuple[tuple[Any, ...], int]] = {}
        self.learn(names, values)

    def learn(self, names: Iterable[Any], values: Iterable[Any]) -> None:
        """Add values. In the name of an array, None stands for a number without a meaning."""
        for name, value in zip(names, values, strict=True):
            self[name] = value
            if isinstance(name, tuple):
                self._places |= {x: (name, k) for k, x in enumerate(name) if x is not None}

    def result(self, name: Any) -> Any:
        """A value in the dtype of its name. Calls return totals as floats, booleans too."""
        return self[name].astype(name[0].dtype) if isinstance(name, tuple) else self[name]

    def __missing__(self, name: Any) -> Any:
        self[name] = found = self._array(name) if isinstance(name, tuple) else self._number(name)
        return found

    def _number(self, name: Any) -> Any:
        whole, k = self._places[name]
        return lax.slice(self[whole], (k,), (k + 1,)).astype(name.dtype).reshape(name.shape)

    def _array(self, names: tuple[Any, ...]) -> Any:
        pieces, k = [], 0
        while k < len(names):
            whole, start = self._places.get(names[k], (names[k : k + 1], 0))
            pairs = zip(names[k:], whole[start:], strict=False)
            # The longest span of `names` that is consecutive in an array which is known.
            count = next((n for n, (x, y) in enumerate(pairs) if x is not y), min(len(names) - k, len(whole) - start))
            array = self[whole] if names[k] in self._places else self[names[k]].reshape(1)
            pieces.append(lax.slice(array, (start,), (start + count,)).astype(names[0].dtype))
            k += count
        return concatenate(pieces)
