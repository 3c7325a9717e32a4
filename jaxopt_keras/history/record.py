"""`History`: collects the measures of a run without waiting for the device, and writes them."""

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.history import writers
from jaxopt_keras.history.measures import GRADIENT, RATE, Groups, checked_groups, matching, measure
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.settings import COUNT
from jaxopt_keras.stateful.validation import pairs
from jaxopt_keras.stateful.variable import value_of
from jaxopt_keras.stateful.variable_kinds import handle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]
WAITING = 512  # rows that may stay on the device


class History:
    """Rows of numbers, one for each step. They stay on the device until they are read.

    Args:
        every: `apply_gradients` computes the norms in one of `every` calls, an integer >= 1. Default: 1.
        groups: for `apply_gradients`, as in `measure`. Default: None.

    `append` and `apply_gradients` do not wait for the device, except for rows that are more than 512 steps old.

    Raises:
        TypeError, ValueError: if `every` is no integer >= 1. TypeError: if `groups` is no mapping to strings.

    >>> history = History()
    >>> for step in range(3):
    ...     history.append({"step": step, "loss": jnp.float32(1 / (1 + step))})
    >>> len(history), history.names, history["loss"].round(2).tolist(), history.line()
    (3, ['step', 'loss'], [1.0, 0.5, 0.33], 'step 2  loss 0.3333')
    """

    def __init__(self, every: int = 1, groups: Groups | None = None) -> None:
        self.every, self.groups = COUNT.check("every", every), checked_groups(groups)
        if self.every < 1:
            raise ValueError(f"`every` must be an integer >= 1. Received: every={every}")
        self._rows: list[Row] = []
        self._waiting: list[Mapping[str, Any]] = []  # 0-d arrays that may not be computed yet
        self._written: dict[str, int] = {}  # number of rows, by TensorBoard directory
        self._calls = 0

    def append(self, measures: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Adds a row: the measures of `measured_step`, and your own numbers, such as `loss=loss`.

        Args:
            measures: numbers by name; arrays with one element, too. Default: None.
            **more: further numbers by name.

        Columns that a row lacks stay empty.

        Raises:
            TypeError: for a value that is no number. ValueError: for an array with several elements.
        """
        row = dict(measures or {}) | more
        for name, x in row.items():
            if isinstance(x, str | bytes | None | Tracer):
                hint = " Return it from the `jit`." if isinstance(x, Tracer) else ""
                raise TypeError(f"`{name}` must be one number. Received: {name}={x!r}.{hint}")
            if np.size(x) != 1:
                raise ValueError(f"`{name}` must be one number. Received: an array of shape {np.shape(x)}")
        self._waiting.append(row)
        if len(self._waiting) > WAITING:
            self._fetch(WAITING // 2)

    def apply_gradients(self, optimizer: Any, grads_and_vars: Iterable[tuple[Any, Any]], **more: Any) -> None:
        """Calls `optimizer.apply_gradients(grads_and_vars)`, and adds a row with its measures.

        Args:
            optimizer: any optimizer of the stateful face, or of Keras.
            grads_and_vars: pairs, as for `apply_gradients`.
            **more: further numbers of the row.

        A call with norms copies the variables and reads them once more: see `every`. Patterns of `groups` are searched
        for in the paths of the variables. The gradient is divided by the loss scale, as in `measured_step`.

        Raises:
            TypeError, ValueError: as in `Optimizer.apply_gradients`; ValueError for a group without variables.
        """
        grads, variables = pairs(grads_and_vars)
        handles = [handle(v) for v in variables]
        measured, rate = self._calls % self.every == 0, getattr(optimizer, RATE, None)
        # The references keep the step from donating the old values.
        old = _by_path(handles) if measured else {}
        for name, pattern in self.groups.items() if measured else ():
            matching(name, pattern, [*old])  # raises before anything has changed
        found = {} if rate is None else {RATE: jnp.copy(value_of(rate))}
        scale = optimizer.scale_loss(1.0)
        optimizer.apply_gradients(zip(grads, variables, strict=True))
        self._calls += 1
        if measured:
            given = dict(zip(old, grads, strict=True))
            found |= _measured(old, _by_path(handles), given, scale, tuple(self.groups.items()))
        found |= {"step": jnp.copy(value_of(optimizer.iterations))}
        skipped = getattr(optimizer, "skipped", 0)  # Keras's own optimizers have no such attribute
        if not isinstance(skipped, int):
            found["skipped"] = jnp.copy(value_of(skipped))
        self.append(found, **more)

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """All rows, as Python numbers. Waits for rows that are being computed."""
        self._fetch(len(self._waiting))
        return self._rows

    @property
    def names(self) -> list[str]:
        """The names of the columns: the step, then all others in the order in which they appeared."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return sorted(found, key=lambda name: name != "step")

    def __repr__(self) -> str:
        return f"<History of {len(self)} rows: {', '.join(self.names)}>" if len(self) else "<History without rows>"

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, with NaN for rows that lack it. Raises a KeyError for an unknown name."""
        if name not in self.names:
            raise KeyError(f"There is no column {name!r}. The columns are {self.names}")
        return np.array([row.get(name, np.nan) for row in self.rows])

    def line(self) -> str:
        """The newest row that is computed, as one line for a progress bar. Does not wait for the device."""
        ready = itertools.takewhile(lambda row: all(map(_is_ready, row.values())), self._waiting)
        self._fetch(sum(1 for _ in ready))
        return writers.line(self._rows[-1]) if self._rows else ""

    # --- writing ----------------------------------------------------------------------------------------------------

    def csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows as a CSV file with a header. Missing values are empty."""
        writers.csv(path, self.names, self.rows)

    def tensorboard(self, directory: str | os.PathLike[str]) -> None:
        """Writes the rows that are new since the last call as scalars for TensorBoard.

        Raises:
            ImportError: if tensorboardX is not installed.
        """
        rows, known = self.rows, self._written.get(str(directory), 0)
        writers.tensorboard(directory, rows[known:], known)
        self._written[str(directory)] = len(rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Plots the loss and your other numbers, the rate, norms, ratios, and skipped steps.

        Args:
            path: the file to save the figure to; the suffix selects the format. Default: None, no file.

        Raises:
            ImportError: if matplotlib is not installed. ValueError: if there are no rows.
        """
        return writers.plot(self, path)

    def _fetch(self, count: int) -> None:
        """Copies the oldest rows from the device, in one transfer."""
        for row in jax.device_get(self._waiting[:count]):
            self._rows.append({name: np.asarray(x).item() for name, x in row.items()})
        del self._waiting[:count]


def _is_ready(x: Any) -> bool:
    return bool(getattr(x, "is_ready", lambda: True)())  # Python numbers are always ready


@locked
def _by_path(handles: list[Any]) -> dict[str, Any]:
    """The values of variables by path. Repeated paths get a number, to be unique."""
    values: dict[str, Any] = {}
    for h in handles:
        paths = itertools.chain([h.path], (f"{h.path}_{i}" for i in itertools.count(1)))
        values[next(path for path in paths if path not in values)] = h.read()
    return values


@jax.jit(static_argnums=4)
def _measured(old: Any, new: Any, grads: Any, scale: Any, groups: tuple[tuple[str, str], ...]) -> Any:
    """`measure`, for gradients of a loss that was multiplied by `scale`."""
    found = measure(old, new, grads, groups=dict(groups))
    return {name: x / jnp.asarray(scale, x.dtype) if name.startswith(GRADIENT) else x for name, x in found.items()}
