"""Learning rates that change: plots of the schedules, an optimizer with a schedule, and a rate set by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import jaxopt_keras as jk
from command import Parser
from examples import common
from jaxopt_keras import schedules

DECAYS = {
    "ExponentialDecay": schedules.ExponentialDecay(initial_learning_rate=0.1, decay_steps=300, decay_rate=0.5),
    "ExponentialDecay, staircase": schedules.ExponentialDecay(0.1, decay_steps=300, decay_rate=0.5, staircase=True),
    "PiecewiseConstantDecay": schedules.PiecewiseConstantDecay(boundaries=[250, 700], values=[0.08, 0.04, 0.01]),
    "PolynomialDecay": schedules.PolynomialDecay(0.1, decay_steps=800, end_learning_rate=0.005, power=2.0),
    "InverseTimeDecay": schedules.InverseTimeDecay(0.1, decay_steps=100, decay_rate=1.0),
}
WAVES_AND_WARMUPS = {
    "CosineDecay, warm-up": schedules.CosineDecay(0.0, decay_steps=900, warmup_target=0.1, warmup_steps=100),
    "CosineDecayRestarts": schedules.CosineDecayRestarts(0.1, first_decay_steps=140, t_mul=2.0, m_mul=0.8),
    "WarmupStableDecay": schedules.WarmupStableDecay(0.06, warmup_steps=50, stable_steps=650, decay_steps=300),
    "InverseSqrtDecay": schedules.InverseSqrtDecay(0.09, warmup_steps=150),
}


def pictures(points: int, out: Path) -> None:
    """Print and plot all schedules. Any other function of the step is a schedule too."""
    common.heading("The schedules")
    everything: dict[str, Callable[[Any], Any]] = DECAYS | WAVES_AND_WARMUPS
    at = (0, 100, 300, 999)
    print(f"{'learning rate at step':30s}" + "".join(f"{step:>9d}" for step in at))
    for name, schedule in everything.items():
        print(f"{name:30s}" + "".join(f"{float(schedule(step)):9.4f}" for step in at))

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    steps = np.linspace(0, 1000, points).round()
    schedules.plot(DECAYS, steps, ax=left)
    schedules.plot(WAVES_AND_WARMUPS, steps, ax=right)
    left.set(title="Decays", xlabel="step (updates made)")
    right.set(title="Waves and warm-ups", xlabel="step (updates made)", ylabel="")
    common.save(figure, out, "schedules.png")


def bowl(w: jk.Variable) -> Callable[[], Array]:
    """Return a loss whose curvature in one direction is a hundred times that in the other."""
    return lambda: jnp.sum(jnp.array([1.0, 0.01]) * jnp.square(w.value))


def follow_a_schedule() -> None:
    """Use a schedule instead of a number."""
    common.heading("An optimizer with a schedule")
    lr_schedule = schedules.ExponentialDecay(initial_learning_rate=1e-2, decay_steps=10_000, decay_rate=0.9)
    optimizer = jk.SGD(learning_rate=lr_schedule)
    w = jk.Variable([1.0, 1.0], name="w")
    optimizer.minimize(bowl(w), [w])
    print(f"Step {int(optimizer.iterations)}: the next rate is {float(optimizer.learning_rate):.6f}")
    optimizer.iterations = 10_000  # as if that many steps had been made
    print(f"Step {int(optimizer.iterations)}: the next rate is {float(optimizer.learning_rate):.6f}")


def change_the_rate(steps: int, out: Path) -> None:
    """Set the rate during training. It is an argument of the compiled step, so nothing is compiled again."""
    common.heading("Changing the rate by hand")
    w = jk.Variable([1.0, 1.0], name="w")
    optimizer = jk.SGD(learning_rate=0.01, momentum=0.9)
    loss = bowl(w)
    losses, rates = [], []
    for step in range(steps):
        if step == steps // 2:
            optimizer.learning_rate = 0.1
            print(f"Step {step}: learning_rate set to {float(optimizer.learning_rate):.2f}")
        losses.append(float(loss()))
        rates.append(float(optimizer.learning_rate))
        optimizer.minimize(loss, [w])
    print(f"Loss: {losses[0]:.4f} at first, {losses[steps // 2]:.4f} half way, {losses[-1]:.1e} at the end")

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(np.arange(steps), losses, label="loss before the step")
    above.set(title="SGD with momentum, its rate raised half way", ylabel="loss", yscale="log")
    above.legend()
    below.step(np.arange(steps), rates, "C1", where="post", label="rate of the step")
    below.set(xlabel="step (updates made)", ylabel="learning rate", ylim=(0, 0.12))
    below.legend(loc="upper left")
    common.save(figure, out, "changed_rate.png")


def parser() -> Parser:
    return common.parser("examples.schedules", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    pictures(points=40 if arguments.quick else 1000, out=arguments.out)
    follow_a_schedule()
    change_the_rate(steps=20 if arguments.quick else 200, out=arguments.out)


if __name__ == "__main__":
    main()
