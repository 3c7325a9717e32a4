"""Random test cases: settings, initial parameters and gradients for both sides; determined by the seed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.histories import Arrays, History, distance, relative, to_numpy
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Field, Rule, fields_of
from jaxopt_keras.pure.kernel import Kernel

Rate = float | Callable[[Any], Any]  # a schedule is a function of the number of updates


class Terms(NamedTuple):
    """The settings that a rule and a peer share, which may be drawn."""

    variant: str
    names: Collection[str]  # of hyperparameters and options, and "schedule"
    pinned: Mapping[str, Any] = {}  # hyperparameters with a fixed value
    shapes: Mapping[str, tuple[int, ...]] = {}  # of the arrays; none: those of the rule
    least: float = 1e-6  # the size of the smallest gradients


@dataclass(frozen=True)
class Case:
    """One run, by the argument names of this library."""

    optimizer: type[Rule]
    variant: str
    hyper: dict[str, Any]  # the rule's arguments, without the rate
    options: dict[str, Any]
    rate: Rate
    params: Arrays
    grads: list[Arrays]

    def __str__(self) -> str:
        rate = f"schedule from {self.rate(0)}" if callable(self.rate) else self.rate
        settings = {"learning_rate": rate, "variant": self.variant} | self.hyper | self.options
        return f"{self.optimizer.__name__}({', '.join(f'{name}={x!r}' for name, x in settings.items())})"


SHAPES = {"kernel": (6, 4), "bias": (7,), "scalar": ()}
MATRICES = {"wide": (3, 5), "cube": (2, 3, 4), "embedding": (5, 3)}  # also, for rules that depend on the shape
CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")


def shapes_for(optimizer: type[Rule]) -> dict[str, tuple[int, ...]]:
    return SHAPES | MATRICES if optimizer.grain == "matrix" else SHAPES


def draw(
    optimizer: type[Rule],
    terms: Terms,
    seed: int,
    steps: int,
    dtype: Any = np.float32,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Case:
    """Draws a case within `terms`; the same arguments give the same case."""
    shapes = shapes or terms.shapes or shapes_for(optimizer)
    return with_starts(draw_settings(optimizer, terms, seed, steps, dtype, shapes), seed)


def draw_settings(
    optimizer: type[Rule], terms: Terms, seed: int, steps: int, dtype: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Case:
    """Draws a case whose parameters are zero."""
    rng = np.random.default_rng([seed, *optimizer.__name__.encode()])
    hyper = {
        name: draw_value(rng, field, getattr(optimizer, name))
        for name, field in fields_of(optimizer).items()
        if name in terms.names and name not in ("learning_rate", "variant")
    }
    rate = float(10 ** rng.uniform(-1.5, -0.5))  # LAMB and Adafactor scale their steps by the parameter's size
    scheduled = "schedule" in terms.names and rng.random() < 0.4
    grads = draw_gradients(rng, shapes, steps, dtype, terms.least)
    options = draw_options(rng, optimizer, terms.names, seed, grads, scheduled)
    scale = options.get("loss_scale_factor", 1.0)
    return Case(
        optimizer=optimizer,
        variant=terms.variant,
        hyper=hyper | dict(terms.pinned),
        options=options,
        rate=decaying(rate) if scheduled else rate,
        params={name: np.zeros(shape, dtype) for name, shape in shapes.items()},
        grads=[{name: (g * scale).astype(dtype) for name, g in each.items()} for each in grads],
    )


def with_starts(case: Case, seed: int) -> Case:
    """The case with initial parameters of 0.1 to 1 times the distance that each travels from zero."""
    rng = np.random.default_rng(seed)
    history = run(case)

    def start(name: str, p: NDArray[Any]) -> NDArray[Any]:
        reach = distance(history, name, p) or 1.0
        return (reach * 10 ** rng.uniform(-1, 0) * normal(rng, p.shape, p.dtype)).astype(p.dtype)

    return replace(case, params={name: start(name, p) for name, p in case.params.items()})


def decaying(rate: float) -> Callable[[Any], Any]:
    """A decaying schedule, which takes ints and the arrays of every library."""

    def schedule(count: Any) -> Any:
        count = count if isinstance(count, int) else jnp.asarray(count, jnp.result_type(float))
        return rate / (1 + count / 20)

    return schedule


def draw_value(rng: np.random.Generator, field: Field, default: Any) -> Any:
    """Draws a valid value of a hyperparameter, near its default."""
    if bool in field.types:
        return bool(rng.integers(2))
    if float not in field.types and int not in field.types:
        return default
    if type(None) in field.types and rng.random() < 0.25:
        return None
    if int in field.types:
        if default is None:  # a threshold on sizes: some arrays are above it, not all
            return int(rng.integers(0, 5))
        value = int(default + rng.integers(-2, 3) if default else rng.integers(0, 10))
        return value if field.range is None or value in field.range else default
    if default is None:  # a number that other ones replace
        default = 0.9 if field.complement else 1.0
    if field.complement and default == 0:  # a momentum that is off
        return float(rng.choice([0.0, rng.uniform(0.5, 0.99)]))
    if field.complement:
        return float(1 - (1 - default) * 10 ** rng.uniform(0, 0.8))
    if default == 0:  # a strength that is off
        return float(rng.choice([0.0, 10 ** rng.uniform(-3, -1)]))
    positive = field.range is not None and max(field.range.low, field.range.above) >= 0
    value = float(default * (10 ** rng.uniform(-1, 1) if positive else rng.uniform(0.97, 1.03)))
    return value if field.range is None or value in field.range else default


def draw_options(
    rng: np.random.Generator,
    optimizer: type[Rule],
    names: Collection[str],
    seed: int,
    grads: list[Arrays],
    scheduled: bool,
) -> dict[str, Any]:
    """Draws the options. The kind of clip alternates with the seed, so that four seeds test them all."""
    options: dict[str, Any] = {}
    if "weight_decay" in names:
        decays = optimizer.required or rng.random() < 0.5
        options["weight_decay"] = float(10 ** rng.uniform(-3, -1)) if decays else None
        if decays and "exclude_from_weight_decay" in names and rng.random() < 0.5:
            options["exclude_from_weight_decay"] = ("kernel",)
    clips = [None, *(clip for clip in CLIPS if clip in names)]
    if clip := clips[(seed + len(optimizer.__name__)) % len(clips)]:
        options[clip] = typical_size(clip, grads) * float(10 ** rng.uniform(-0.5, 0.5))
    if "loss_scale_factor" in names and rng.random() < 0.4:
        options["loss_scale_factor"] = float(10 ** rng.uniform(-2, 4))
    averaged = "use_ema" in names and rng.random() < 0.4
    if averaged:
        options |= {"use_ema": True, "ema_momentum": float(1 - 10 ** rng.uniform(-2, -0.5))}
        options["ema_overwrite_frequency"] = int(
            rng.integers(2, 20)
        )  # otherwise the average would not change the parameters
    if "gradient_accumulation_steps" in names and not averaged and not scheduled and rng.random() < 0.4:
        options["gradient_accumulation_steps"] = int(rng.integers(2, 5))
    return options


def typical_size(clip: str, grads: list[Arrays]) -> float:
    """The median size of what `clip` limits: a limit near it clips at some steps only."""
    norms = np.array([[np.linalg.norm(g) for g in each.values()] for each in grads])
    if clip == "clipnorm":
        return float(np.median(norms))
    if clip == "global_clipnorm":
        return float(np.median(np.linalg.norm(norms, axis=1)))
    return float(np.median(np.concatenate([np.abs(g).ravel() for each in grads for g in each.values()])))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Normal numbers, complex if `dtype` is."""
    x = rng.normal(size=shape)
    return np.asarray(x + 1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else x)


def draw_gradients(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], steps: int, dtype: Any, least: float
) -> list[Arrays]:
    """Draws normal gradients, with another size for each array, from `least` to 100.

    Half of the elements of "bias" are zero.
    """
    sizes = {name: 10 ** rng.uniform(np.log10(least), 2) for name in shapes}

    def one(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        kept = rng.random(shape) < (0.5 if name == "bias" else 1.0)
        return (sizes[name] * kept * normal(rng, shape, dtype)).astype(dtype)

    return [{name: one(name, shape) for name, shape in shapes.items()} for _ in range(steps)]


def run(case: Case) -> History:
    """Runs the case with this library."""
    return run_with_state(case)[0]


def run_with_state(case: Case) -> tuple[History, Any]:
    arguments: dict[str, Any] = {"learning_rate": case.rate, "variant": case.variant} | case.hyper
    kernel = Kernel(case.optimizer(**arguments), Options(**case.options))
    params: Any = {name: jnp.asarray(p) for name, p in case.params.items()}
    state, history = kernel.init(params), []
    for grads in case.grads:
        params, state = kernel.step(params, state, grads, donate=False)
        history.append(to_numpy(params))
    return history, state


def difference(ours: History, theirs: History, case: Case) -> float:
    """The greatest difference of any parameter at any step, relative to the distance that the parameter travels."""
    return max(relative(ours, theirs, name, start) for name, start in case.params.items())
