"""Tasks that are formulas: valleys, saddles, plateaus, noise, sparse gradients, small networks on drawn data."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.task import Task


def vector(*numbers: float) -> dict[str, Any]:
    return {"x": np.asarray(numbers, np.float32)}


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Any:
    """Normal numbers of standard deviation `scale`. Data are NumPy's, so that the import computes nothing with JAX."""
    return np.asarray(np.random.default_rng(seed).normal(size=shape) * scale, np.float32)


def rosenbrock(p: Any, key: Any) -> Any:
    x = p["x"]
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(p: Any, key: Any) -> Any:
    x, y = p["x"]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def saddle(p: Any, key: Any) -> Any:
    x, y = p["x"]
    return x**2 - y**2 + y**4 / 4 + 1  # least, 0, at y = ±sqrt(2)


def monkey(p: Any, key: Any) -> Any:
    x, y = p["x"]
    return x**3 - 3 * x * y**2 + (x**2 + y**2) ** 2 / 4 + 6.75  # a saddle of three valleys; least, 0


def plateau(p: Any, key: Any) -> Any:
    return jnp.mean(1 - jnp.exp(-(p["x"] ** 2) / 2))


def steep(p: Any, key: Any) -> Any:
    return jnp.sum(jnp.abs(p["x"]))


DIMENSIONS = 16
SPECTRUM = np.asarray(np.logspace(0, 4, DIMENSIONS) / 1e4, np.float32)
TURN = np.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(DIMENSIONS, DIMENSIONS)))[0], np.float32)
UNITS = np.asarray(np.logspace(-3, 3, DIMENSIONS), np.float32)


def bowl(p: Any, key: Any) -> Any:
    return jnp.mean(p["x"] ** 2)


def narrow(p: Any, key: Any) -> Any:
    return jnp.sum(SPECTRUM * p["x"] ** 2)


def turned(p: Any, key: Any) -> Any:
    return jnp.sum(SPECTRUM * (TURN @ p["x"]) ** 2)


def units(p: Any, key: Any) -> Any:
    return jnp.mean((UNITS * p["x"] - UNITS) ** 2 / UNITS)


def noisy_bowl(p: Any, key: Any) -> Any:
    return bowl(p, key) + jnp.vdot(jax.random.normal(key, (DIMENSIONS,)), p["x"]) * 0.1


def noisy_plateau(p: Any, key: Any) -> Any:
    return plateau(p, key) + jnp.vdot(jax.random.normal(key, p["x"].shape), p["x"]) * 0.02


def spiky_bowl(p: Any, key: Any) -> Any:
    noise = jax.random.cauchy(key, (DIMENSIONS,)) * 0.05  # has no mean: spikes of any size
    return bowl(p, key) + jnp.vdot(noise, p["x"])


def sparse_bowl(p: Any, key: Any) -> Any:
    seen = jax.random.bernoulli(key, 0.1, (DIMENSIONS,))
    return jnp.mean(jnp.where(seen, p["x"] ** 2, 0)) * 10


CORNERS = np.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
PARITY = np.asarray([0, 1, 1, 0], np.float32)


def xor(p: Any, key: Any) -> Any:
    out = jnp.tanh(CORNERS @ p["in"] + p["bias"]) @ p["out"]
    return jnp.mean((out[:, 0] - PARITY) ** 2)


def spiral_points() -> tuple[Any, Any]:
    angle = np.linspace(0.5, 2.5 * math.pi, 48)
    arm = np.stack([np.cos(angle), np.sin(angle)], 1) * angle[:, None] / 8
    return np.concatenate([arm, -arm]).astype(np.float32), np.repeat(np.array([1, -1], np.float32), 48)


SPIRALS = spiral_points()


def spirals(p: Any, key: Any) -> Any:
    hidden = jnp.tanh(jnp.tanh(SPIRALS[0] @ p["in"] + p["bias"]) @ p["middle"])
    return jnp.mean(jnp.logaddexp(0, -SPIRALS[1] * (hidden @ p["out"])[:, 0]))


LOW_RANK = drawn(7, 20, 3) @ drawn(8, 3, 20)


def factorization(p: Any, key: Any) -> Any:
    return jnp.mean((p["left"] @ p["right"] - LOW_RANK) ** 2)


MAP = drawn(9, 12, 12, scale=12**-0.5)


def deep_linear(p: Any, key: Any) -> Any:
    product = p["a"] @ p["b"] @ p["c"] @ p["d"]
    return jnp.sum((product - MAP) ** 2)


POINTS = drawn(10, 200, 12) * np.logspace(-1, 1, 12).astype(np.float32)
LABELS = np.sign(POINTS @ drawn(11, 12) + drawn(12, 200, scale=0.1))


def logistic(p: Any, key: Any) -> Any:
    rows = jax.random.choice(key, 200, (32,))
    return _logistic(p, jnp.asarray(POINTS)[rows], jnp.asarray(LABELS)[rows])


def _logistic(p: Any, points: Any, labels: Any) -> Any:
    return jnp.mean(jnp.logaddexp(0, -labels * (points @ p["x"])))


def flat(n: int, value: float = 1.0) -> dict[str, Any]:
    return {"x": np.full(n, value, np.float32)}


XOR = {"in": drawn(1, 2, 8), "bias": flat(8, 0)["x"], "out": drawn(2, 8, 1, scale=0.5)}
SPIRAL = {"in": drawn(3, 2, 16), "bias": flat(16, 0)["x"]}
SPIRAL |= {"middle": drawn(4, 16, 16, scale=0.25), "out": drawn(5, 16, 1)}
FACTORS = {"left": drawn(13, 20, 3, scale=0.1), "right": drawn(14, 3, 20, scale=0.1)}
LAYERS = {name: drawn(15 + i, 12, 12, scale=12**-0.5) for i, name in enumerate("abcd")}

TASKS = [
    Task("rosenbrock", "a curved valley in two dimensions", vector(-1.2, 1), rosenbrock, 1e-2, 1500),
    Task("rosenbrock 8", "the same in eight dimensions", vector(*[-0.5] * 8), rosenbrock, 5e-1, 1500),
    Task("beale", "a flat valley between steep walls", vector(1, 1), beale, 1e-2, 1000),
    Task("saddle", "a start beside a saddle", vector(1, 1e-3), saddle, 1e-2, 500),
    Task("monkey saddle", "a start beside a saddle without curvature", vector(1e-2, 2e-2), monkey, 1e-1, 1000),
    Task("plateau", "gradients of 1e-3 at the start", vector(3.5, -3.5, 3), plateau, 1e-2, 1000),
    Task("noisy plateau", "the same below noise", vector(3, -3, 2.5), noisy_plateau, 5e-2, 1500, plateau),
    Task("absolute value", "gradients that do not become small", flat(8), steep, 5e-2, 500),
    Task("bowl", "a quadratic form of condition 1", flat(DIMENSIONS), bowl, 1e-4, 500),
    Task("narrow bowl", "condition 10,000 along the axes", flat(DIMENSIONS), narrow, 1e-4, 1500),
    Task("turned bowl", "condition 10,000 along other directions", flat(DIMENSIONS), turned, 3e-3, 1500),
    Task("units", "parameters in units that differ by a million", flat(DIMENSIONS, 0), units, 1e-1, 1500),
    Task("noisy bowl", "normal noise on gradients", flat(DIMENSIONS), noisy_bowl, 2e-2, 1000, bowl),
    Task("spiky bowl", "noise on gradients that has no mean", flat(DIMENSIONS), spiky_bowl, 2e-2, 1000, bowl),
    Task("sparse bowl", "one gradient in ten", flat(DIMENSIONS), sparse_bowl, 1e-3, 1000, bowl),
    Task("xor", "a network of 8 units", XOR, xor, 1e-2, 1000),
    Task("spirals", "two spirals, a network of three layers", SPIRAL, spirals, 5e-2, 1500),
    Task("logistic", "features of other units, batches of 32", flat(12), logistic, 0.12, 1000,
         lambda p, key: _logistic(p, POINTS, LABELS)),
    Task("factorization", "a matrix of rank 3 as a product", FACTORS, factorization, 1e-2, 1000),
    Task("deep linear", "a product of four matrices", LAYERS, deep_linear, 1e-2, 1000),
]  # fmt: skip
