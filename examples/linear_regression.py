"""Linear regression by gradient descent: two scalar variables and the sum of squared errors.

The fit runs twice: with explicit updates `a <- a - lr da`, and with `SGD`, which makes the same updates.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import jaxopt_keras as jk
from command import Parser
from examples import common


class Regression:
    """The model y = a + b x."""

    def __init__(self) -> None:
        self.a = jk.Variable(initial_value=0, dtype=jnp.float32, name="a")
        self.b = jk.Variable(initial_value=0, dtype=jnp.float32, name="b")

    def __call__(self, x: Array) -> Array:
        return self.a.value + self.b.value * x


def loss_func(y_true: Array, y_pred: Array) -> Array:
    """Compute the sum of squared errors."""
    return jnp.sum(jnp.square(y_true - y_pred))


class History(NamedTuple):
    """Variables and cost before each epoch."""

    a: list[float]
    b: list[float]
    cost: list[float]


Update = Callable[[Regression, Array, Array], None]  # updates a model from the gradients (da, db)


def fit(update: Update, x: Array, y: Array, epochs: int) -> tuple[Regression, History]:
    """Train a new model, and return it with its history."""
    model, history = Regression(), History([], [], [])

    def loss(x: Array, y: Array) -> Array:
        return loss_func(y, model(x))

    for epoch in range(epochs):
        # Store values: a list of variables would contain the same variable many times, with its last value.
        history.a.append(float(model.a))
        history.b.append(float(model.b))
        cost, (da, db) = jk.value_and_grad(loss, [model.a, model.b], x, y)
        history.cost.append(float(cost))
        update(model, da, db)
        print(f"Epoch: {epoch}, Loss: {cost:.2f}")
    return model, history


def draw(x: Array, y: Array, model: Regression, history: History, out: Path) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    points, cost, values = figure.subplots(1, 3)

    points.scatter(np.asarray(x), np.asarray(y), s=10, alpha=0.6, label="points")
    ends = jnp.array([0.0, 1.0])
    points.plot(ends, 0.3 + 0.5 * ends, color="0.4", linewidth=1, label="y = 0.3 + 0.5 x, the true line")
    points.plot(ends, model(ends), "r--", label=f"y = {float(model.a):.2f} + {float(model.b):.2f} x, fitted")
    points.set(title="Points and line", xlabel="x, independent", ylabel="y, dependent", ylim=(-0.8, 2.5))
    points.legend(loc="upper left", fontsize="small")

    cost.plot(history.cost, label="sum of squared errors")
    last = history.cost[-1]
    cost.axhline(last, color="0.4", linewidth=0.8, linestyle=":", label=f"at the end: {last:.2f}")
    cost.set(title="Cost", xlabel="epoch", ylabel="sum of squared errors", ylim=(0, None))
    cost.legend(fontsize="small")

    values.plot(history.a, label="a, the intercept")
    values.plot(history.b, label="b, the slope")
    values.set(title="Variables", xlabel="epoch", ylabel="value")
    values.legend(fontsize="small")
    common.save(figure, out, "linear_regression.png")


def parser() -> Parser:
    return common.parser("examples.linear_regression", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    epochs, lr = 10 if arguments.quick else 70, 0.001
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 1.0, 200)
    y = 0.3 + 0.5 * x + rng.normal(0.0, 0.3, len(x))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    common.heading("By hand")

    def by_hand(model: Regression, da: Array, db: Array) -> None:
        model.a.assign_sub(da * lr)
        model.b.assign_sub(db * lr)

    model, manual = fit(by_hand, x, y, epochs)

    common.heading("With SGD")
    optimizer = jk.SGD(learning_rate=lr)

    def by_sgd(model: Regression, da: Array, db: Array) -> None:
        optimizer.apply_gradients([(da, model.a), (db, model.b)])

    _, with_sgd = fit(by_sgd, x, y, epochs)

    print(f"\nFitted: y = {float(model.a):.3f} + {float(model.b):.3f} x")
    difference = np.max(np.abs(np.subtract(manual.cost, with_sgd.cost)))
    print(f"Greatest difference of a loss between both: {difference:.1e}")
    draw(x, y, model, manual, arguments.out)


if __name__ == "__main__":
    main()
