"""Plots of schedules."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxopt_keras.language.optional import optional
from jaxopt_keras.schedules.base import Schedule, is_schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(
    schedule: Schedule | Mapping[str, Schedule] | Sequence[Schedule],
    steps: int | Sequence[int] | np.ndarray,
    ax: "Axes | None" = None,
    path: str | PathLike[str] | None = None,
) -> "Axes":
    """Plot the learning rate over the steps, with matplotlib but without pyplot: no window, no global state.

    Args:
        schedule: one schedule, or several: a list, or a dict whose keys are the legend.
        steps: the number of steps to plot, from 0 on (at most a thousand are computed), or the steps themselves.
        ax: the axes to plot on; None: new ones.
        path: the file to save the plot in, a PNG unless its suffix says otherwise; None: no file.

    Returns:
        The axes; their figure is `ax.figure`.

    Raises:
        ImportError: without matplotlib. TypeError: if a schedule is not a function of the step. ValueError: without
            steps.

    >>> from jaxopt_keras.schedules import ExponentialDecay
    >>> plot({"fast": ExponentialDecay(0.1, 100, 0.5), "slow": lambda step: 0.1}, steps=300).get_xlabel()
    'step'
    """
    if isinstance(schedule, Mapping):
        lines = list(schedule.items())
    else:
        lines = [(_title(each), each) for each in (schedule if isinstance(schedule, Sequence) else [schedule])]
    for _, each in lines:
        if not is_schedule(each):
            raise TypeError(f"`schedule` must be a function of the step, or a list or dict of them. Received: {each!r}")
    at = np.asarray(steps)
    if at.ndim == 0:
        at = np.linspace(0, at - 1, max(0, min(int(at), 1000))).round()
    if at.size == 0:
        raise ValueError(f"`steps` must be at least 1. Received: steps={steps!r}")
    if ax is None:
        matplotlib = optional("matplotlib.figure", "`plot`", "plots")
        ax = cast("Axes", matplotlib.Figure(layout="constrained").subplots())
    for label, each in lines:
        ax.plot(at, np.array([each(int(step)) for step in at], float), label=label)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.legend()
    if path is not None:
        ax.figure.canvas.print_figure(path)
    return ax


def _title(schedule: Any) -> str:
    name = getattr(schedule, "name", None) or getattr(schedule, "__name__", None)
    return name if isinstance(name, str) else type(schedule).__name__
