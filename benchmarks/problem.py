"""The problem: one workload with one optimizer, and the numbers that every implementation gets."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.cases import Case, Rate, decaying
from benchmarks.parity.peer import RULES
from benchmarks.workloads import Workload
from jaxopt_keras import optimizers
from jaxopt_keras.language.rule import Rule, fields_of

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

# Our defaults are Keras's. With these changes every library computes the same.
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.01, "momentum": 0.9},
    "rmsprop": {"epsilon": 1e-30},  # torch adds it to the root, the others inside the root
    "adagrad": {"epsilon": 1e-30},
    "muon": {"exclude_embeddings": False},
}
FIXED_RATE = {"rmsprop", "schedule_free_adamw"}  # with a schedule, torch's and optax's compute something else


class Rows(NamedTuple):
    """A gradient of some rows, as a layer returns it: in any order, and a row may occur twice."""

    values: NDArray[Any]
    indices: NDArray[Any]


class Batch(NamedTuple):
    """The data of a train step, which computes its own gradients."""

    x: NDArray[Any]
    y: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """One workload, one optimizer, one dtype, and arrays. Steps use the elements of `given` in turn."""

    workload: Workload
    optimizer: str
    dtype: str
    rate: Rate
    params: dict[str, NDArray[Any]]
    given: list[Any]  # dicts of gradients, dense or `Rows`, by parameter; or a `Batch`

    @property
    def rule(self) -> type[Rule]:
        return RULES[self.optimizer]

    @property
    def settings(self) -> dict[str, Any]:
        """Return all arguments of the optimizer but the variant; other libraries have other defaults."""
        defaults = {p.name: p.default for p in optimizers.parameters(self.rule)}
        return {name: x for name, x in (defaults | SETTINGS.get(self.optimizer, {})).items() if name != "variant"}

    @property
    def hyper(self) -> dict[str, Any]:
        own = fields_of(self.rule).keys() - {"learning_rate", "variant"}
        return {name: x for name, x in self.settings.items() if name in own}

    @property
    def options(self) -> dict[str, Any]:
        return {"weight_decay": self.settings["weight_decay"]}

    def case(self, variant: str) -> Case:
        """Return the case for the peers of `benchmarks.parity`, which translate it for each library."""
        return Case(self.rule, variant, self.hyper, self.options, self.rate, self.params, self.given)

    @functools.cached_property
    def on_device(self) -> list[Any]:
        """Return `given` as JAX arrays, which all implementations in JAX share."""

        def moved(given: Any) -> Any:  # not by tree.map, which sorts the names
            if isinstance(given, dict):
                return {name: moved(g) for name, g in given.items()}
            return jax.tree.map(jnp.asarray, given)

        return jax.block_until_ready([moved(given) for given in self.given])

    def start(self) -> dict[str, jax.Array]:
        """Return the parameters as JAX arrays that may be donated."""
        return {name: jnp.array(p, copy=True) for name, p in self.params.items()}


def device() -> Any:
    """Return the device on which JAX creates arrays."""
    # JAX's flags are attributes that are made at run time.
    return jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]


def rate_of(optimizer: str) -> float:
    return SETTINGS.get(optimizer, {}).get("learning_rate", 1e-3)


def to_time(workload: Workload, optimizer: str, dtype: str) -> Problem:
    """Return a problem for timing: normal numbers, and the same gradients at every step."""
    return made(workload, optimizer, dtype, rate_of(optimizer), 1, np.random.default_rng(0), sizes=False)


def to_compare(workload: Workload, optimizer: str, dtype: str, steps: int = 5, seed: int = 0) -> Problem:
    """Return a miniature for checks: fresh gradients at every step, of sizes from epsilon to 10, a changing rate."""
    rate = 10 * rate_of(optimizer)
    rate = rate if optimizer in FIXED_RATE else decaying(rate)
    return made(workload.miniature(), optimizer, dtype, rate, steps, np.random.default_rng(seed), sizes=True)


def made(
    workload: Workload, optimizer: str, dtype: str, rate: Rate, steps: int, rng: np.random.Generator, sizes: bool
) -> Problem:
    def normal(shape: tuple[int, ...], scale: float) -> NDArray[Any]:
        return (scale * rng.standard_normal(shape, np.float32)).astype(DTYPES[dtype])

    shapes = workload.shapes
    spread = np.linspace(-6, 1, len(shapes)) if sizes and len(shapes) > 1 else np.zeros(len(shapes))
    scales = dict(zip(shapes, 10**spread, strict=True))

    def gradient(name: str, shape: tuple[int, ...]) -> Any:
        if workload.kind != "rows":
            return normal(shape, scales[name])
        indices = rng.integers(0, shape[0], workload.rows, dtype=np.int32)
        return Rows(normal((workload.rows, *shape[1:]), scales[name]), indices)

    def batch() -> Batch:
        first, last = list(shapes.values())[0][0], list(shapes.values())[-1][0]
        return Batch(normal((workload.rows, first), 1.0), rng.integers(0, last, workload.rows, dtype=np.int32))

    params = {name: normal(shape, 1 / np.sqrt(max(shape[0], 16))) for name, shape in shapes.items()}
    given = [
        batch() if workload.kind == "training" else {name: gradient(name, shape) for name, shape in shapes.items()}
        for _ in range(steps)
    ]
    return Problem(workload, optimizer, dtype, rate, params, given)
