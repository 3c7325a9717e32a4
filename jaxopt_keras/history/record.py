"""A run's measures: collected without waiting for them, and written."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.history import writers
from jaxopt_keras.history.measures import COUNT, GRADIENT, RATE, Groups, checked_groups, matching, measure
from jaxopt_keras.stateful.validation import pairs
from jaxopt_keras.stateful.variable import value_of
from jaxopt_keras.stateful.variable_kinds import handle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxopt_keras.stateful.optimizer import Optimizer

Row = dict[str, float]
WAITING = 512  # rows that may lie on the device


class History:
    """Rows of numbers, one for each step, which stay on the device until somebody looks.

    Args:
        every: for `apply_gradients`: the norms are taken once in so many calls.
        groups: for `apply_gradients`: as in `measure`.

    Nothing in `append` and `apply_gradients` waits for the device, but for what is over 512 rows old.

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
        self._waiting: list[Mapping[str, Any]] = []  # 0-d arrays, perhaps not computed yet
        self._written: dict[str, int] = {}  # rows, by TensorBoard's directory
        self._calls = 0

    def append(self, measures: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Adds a row: what `measured_step` gave, and numbers of yours, `loss=loss`. Arrays of one element will do.

        What a row lacks, such as norms that were left out, stays empty.
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

    def apply_gradients(self, optimizer: "Optimizer", grads_and_vars: Iterable[tuple[Any, Any]], **more: Any) -> None:
        """`optimizer.apply_gradients(grads_and_vars)`, and a row that says what it did.

        A call that is measured copies the variables, and takes a pass over them: see `every`. Names of groups and
        patterns are of the variables' paths. The gradient is unscaled, as that of `measured_step`.

        Raises:
            As `Optimizer.apply_gradients`; ValueError for a group without variables.
        """
        grads, variables = pairs(grads_and_vars)
        handles = [handle(v) for v in variables]
        measured, rate = self._calls % self.every == 0, getattr(optimizer, RATE, None)
        # What is held here the step does not consume.
        old = _by_path(handles) if measured else {}
        for name, pattern in self.groups.items() if measured else ():
            matching(name, pattern, [*old])  # which may refuse, before anything has changed
        seen = {} if rate is None else {RATE: jnp.copy(value_of(rate))}
        scale = optimizer.scale_loss(1.0)
        optimizer.apply_gradients(zip(grads, variables, strict=True))
        self._calls += 1
        if measured:
            given = dict(zip(old, grads, strict=True))
            seen |= _measured(old, _by_path(handles), given, scale, tuple(self.groups.items()))
        seen |= {"step": jnp.copy(value_of(optimizer.iterations))}
        skipped = getattr(optimizer, "skipped", 0)  # Keras's own optimizers know of no such thing
        if not isinstance(skipped, int):
            seen["skipped"] = jnp.copy(value_of(skipped))
        self.append(seen, **more)

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """All rows, as Python numbers. Waits for those that are being computed."""
        self._fetch(len(self._waiting))
        return self._rows

    @property
    def names(self) -> list[str]:
        """Of the columns, in the order of their arrival, the step first."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return [*(["step"] if "step" in found else []), *(name for name in found if name != "step")]

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, NaN where a row lacks it. Raises a KeyError that names those there are."""
        if name not in self.names:
            raise KeyError(f"There is no column {name!r}. There are {self.names}")
        return np.array([row.get(name, np.nan) for row in self.rows])

    def line(self) -> str:
        """The newest row that is there, in one line, for a progress bar: it waits for nothing."""
        ready = 0
        while ready < len(self._waiting) and all(_is_ready(x) for x in self._waiting[ready].values()):
            ready += 1
        self._fetch(ready)
        return writers.line(self._rows[-1]) if self._rows else ""

    # --- writing ----------------------------------------------------------------------------------------------------

    def csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows as a table with a header, empty where a row lacks a column."""
        writers.csv(path, self.names, self.rows)

    def tensorboard(self, directory: str | os.PathLike[str]) -> None:
        """Writes the rows that are new since the last call as scalars for TensorBoard; call it now and then.

        Raises:
            ImportError: without tensorboardX.
        """
        rows, known = self.rows, self._written.get(str(directory), 0)
        writers.tensorboard(directory, rows[known:], known)
        self._written[str(directory)] = len(rows)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draws what there is: the loss and other numbers of yours, the rate, norms, ratios, and skipped steps.

        Args:
            path: where to save the picture; a PNG unless the name ends otherwise.

        Raises:
            ImportError: without matplotlib. ValueError: without rows.
        """
        return writers.plot(self, path)

    def _fetch(self, count: int) -> None:
        """Takes the oldest rows off the device, in one go."""
        for row in jax.device_get(self._waiting[:count]):
            self._rows.append({name: np.asarray(x).item() for name, x in row.items()})
        del self._waiting[:count]


def _is_ready(x: Any) -> bool:
    return bool(getattr(x, "is_ready", lambda: True)())  # a number is


def _by_path(handles: list[Any]) -> dict[str, Any]:
    """The values of variables, by paths that tell them apart."""
    values: dict[str, Any] = {}
    for h in handles:
        path, i = h.path, 0
        while path in values:
            i += 1
            path = f"{h.path}_{i}"
        values[path] = h.read()
    return values


@jax.jit(static_argnums=4)
def _measured(old: Any, new: Any, grads: Any, scale: Any, groups: tuple[tuple[str, str], ...]) -> Any:
    """As `measure`, of gradients of a loss that was multiplied by `scale`."""
    found = measure(old, new, grads, groups=dict(groups))
    return {name: x / jnp.asarray(scale, x.dtype) if name.startswith(GRADIENT) else x for name, x in found.items()}
