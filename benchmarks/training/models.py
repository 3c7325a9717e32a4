"""Tasks that are models of data: networks on digits and on mnist1d, a small transformer on text."""

import argparse
import inspect
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.functions import drawn
from benchmarks.training.task import Task

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 32, 32, 2, 2, 16


def digits() -> Task:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return network("digits", "8 x 8 digits, a network of 32 units", images / 16, labels, [32], 20, 0.1, 400)


def mnist1d() -> Task:
    from mnist1d.data import get_dataset_args, make_dataset

    kept = np.random.get_state()  # which the package seeds
    made = make_dataset(get_dataset_args())
    np.random.set_state(kept)
    about = "4,000 noisy curves that look like digits, a network of 100 and 100 units"
    return network("mnist1d", about, made["x"], made["y"], [100, 100], 50, 1.0, 600)


def network(name: str, about: str, points: Any, classes: Any, hidden: list[int], seed: int, target: float, steps: int):
    """A network of dense layers on ten classes, in batches of 64."""
    points, classes = jnp.asarray(points, jnp.float32), jnp.asarray(classes, jnp.int32)
    widths = [points.shape[1], *hidden, 10]
    names = ["in", *(f"hidden{i}" for i in range(1, len(hidden))), "out"]
    params = {
        layer: {"kernel": drawn(seed + i, n, m, scale=n**-0.5), "bias": np.zeros(m, np.float32)}
        for i, (layer, n, m) in enumerate(zip(names, widths[:-1], widths[1:], strict=True))
    }

    def entropy(p: Any, rows: Any) -> Any:
        x = points[rows]
        for layer in names:
            x = x @ p[layer]["kernel"] + p[layer]["bias"]
            x = jax.nn.log_softmax(x) if layer == "out" else jax.nn.relu(x)
        return -jnp.mean(jnp.take_along_axis(x, classes[rows][:, None], 1))

    def loss(p: Any, key: Any) -> Any:
        return entropy(p, jax.random.choice(key, len(classes), (64,)))

    every = jnp.arange(len(classes))
    return Task(name, about, params, loss, target, steps, lambda p, key: entropy(p, every))


def text() -> np.ndarray:
    """The source of two modules of the standard library, as codes of characters."""
    letters = "".join(inspect.getsource(module) for module in (argparse, textwrap))
    return np.frombuffer(letters.encode("ascii", "replace"), np.uint8) % 128


def transformer() -> Task:
    codes = jnp.asarray(text(), jnp.int32)
    scale = WIDTH**-0.5
    params: dict[str, Any] = {
        "embedding": drawn(30, 128, WIDTH, scale=0.1),
        "position": drawn(31, CONTEXT, WIDTH, scale=0.1),
    }
    for i in range(LAYERS):
        shapes = {"query": WIDTH, "key": WIDTH, "value": WIDTH, "proj": WIDTH, "up": 4 * WIDTH}
        layer = {name: drawn(40 + 10 * i + j, WIDTH, n, scale=scale) for j, (name, n) in enumerate(shapes.items())}
        params[f"layer{i}"] = layer | {"down": drawn(46 + 10 * i, 4 * WIDTH, WIDTH, scale=scale / 4)}
    params["head"] = drawn(32, WIDTH, 128, scale=scale / 4)

    def normal(x: Any) -> Any:
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def attended(p: Any, x: Any) -> Any:
        split = lambda y: y.reshape(*y.shape[:2], HEADS, -1)
        out = jax.nn.dot_product_attention(*(split(x @ p[n]) for n in ("query", "key", "value")), is_causal=True)
        return out.reshape(x.shape) @ p["proj"]

    def entropy(p: Any, starts: Any) -> Any:
        rows = codes[starts[:, None] + jnp.arange(CONTEXT + 1)]
        x = p["embedding"][rows[:, :-1]] + p["position"]
        for i in range(LAYERS):
            layer = p[f"layer{i}"]
            x = x + attended(layer, normal(x))
            x = x + jax.nn.gelu(normal(x) @ layer["up"]) @ layer["down"]
        out = jax.nn.log_softmax(normal(x) @ p["head"])
        return -jnp.mean(jnp.take_along_axis(out, rows[:, 1:, None], 2))

    def loss(p: Any, key: Any) -> Any:
        return entropy(p, jax.random.choice(key, len(codes) - CONTEXT - 1, (BATCH,)))

    fixed = jnp.arange(0, len(codes) - CONTEXT - 1, len(codes) // 32)
    about = f"characters of Python's source, {LAYERS} layers of width {WIDTH}"
    return Task("transformer", about, params, loss, 2.3, 300, lambda p, key: entropy(p, fixed))


MODELS = {"digits": digits, "mnist1d": mnist1d, "transformer": transformer}
