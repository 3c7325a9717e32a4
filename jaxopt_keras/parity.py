"""How far this library is from Keras, optax, torch and float64: one command, one table.

    python -m jaxopt_keras.parity [--optimizer NAME ...] [--peer NAME ...] [--steps 60] [--seeds 5]

Every optimizer runs in float32 beside its counterpart: the same start, the same gradients, the same random settings
(hyperparameters, weight decay, a clip, an average that overwrites, a loss scale, a schedule, accumulation). An entry of
the table is the greatest difference of a parameter at any step, divided by the greatest distance that this parameter
travels from its start; the worst parameter of the worst seed counts.

The gradients are given, not those of a loss at the parameters: no problem then amplifies what the two sides round
differently, and an entry is about the optimizer alone. Each array's gradients have a size of their own, from 1e-6 to
1e2, so that epsilons matter in some and not in others. Each array starts at a tenth to once the distance that it will
travel: a parameter of 1 that moves by 1e-6 would show nothing but its own rounding.

Decays are drawn up to their defaults. The peers compute 1 - beta^t from a float32 beta, which is wrong by up to
6e-8 / (1 - beta): 6e-5 for 0.999, and more than any bar beyond it. Ours go through the complement (`numerics`).

Not compared, because the peers deliberately mean something else:

- accumulation together with a schedule or an average. Keras moves both on every micro-step, this library once per
  update; accumulation alone is compared;
- optax's schedule-free AdamW under a schedule: it weighs by the rate of the next step;
- torch's AMSGrad (its maximum is over another value than Keras's and optax's), its weight decay where it is coupled
  and ours is not, its clipping by norm (it adds 1e-6 to the norm), its Muon (it iterates in bfloat16).
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxopt_keras import optimizers
from jaxopt_keras.functional import Kernel
from jaxopt_keras.options import Options
from jaxopt_keras.rule import Field, Rule, fields_of

BAR = 2e-5
BARS = {"Muon": 2e-4}  # its iteration amplifies rounding

Arrays = dict[str, NDArray[Any]]
History = list[Arrays]  # the parameters after each step
Rate = float | Callable[[Any], Any]  # a schedule is a function of the number of updates made


# ---------------------------------------------------------------------------------------------------------------------
# A case: what both sides are given


class Terms(NamedTuple):
    """What a rule and a peer agree on, and what may therefore be drawn."""

    variant: str
    names: Collection[str]  # of hyperparameters and options, and "schedule"
    pinned: Mapping[str, Any] = {}  # hyperparameters that have to have one value


@dataclass(frozen=True)
class Case:
    """One run, in our words."""

    optimizer: type[Rule]
    variant: str
    hyper: dict[str, Any]  # the rule's arguments but for the rate
    options: dict[str, Any]
    rate: Rate
    params: Arrays
    grads: list[Arrays]

    def __str__(self) -> str:
        rate = f"schedule from {self.rate(0)}" if callable(self.rate) else self.rate
        settings = {"learning_rate": rate, "variant": self.variant} | self.hyper | self.options
        return f"{self.optimizer.__name__}({', '.join(f'{name}={x!r}' for name, x in settings.items())})"


SHAPES = {"kernel": (6, 4), "bias": (7,), "scalar": ()}
MATRICES = {"wide": (3, 5), "cube": (2, 3, 4), "embedding": (5, 3)}  # besides, for rules that look at the shape
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
    """A random case within `terms`, always the same for the same arguments."""
    return placed(draw_settings(optimizer, terms, seed, steps, dtype, shapes or shapes_for(optimizer)), seed)


def draw_settings(
    optimizer: type[Rule], terms: Terms, seed: int, steps: int, dtype: Any, shapes: Mapping[str, tuple[int, ...]]
) -> Case:
    """All of a case but the parameters, which are zero."""
    rng = np.random.default_rng([seed, *optimizer.__name__.encode()])
    hyper = {
        name: draw_value(rng, field, getattr(optimizer, name))
        for name, field in fields_of(optimizer).items()
        if name in terms.names and name not in ("learning_rate", "variant")
    }
    rate = float(10 ** rng.uniform(-1.5, -0.5))  # LAMB and Adafactor move by this part of the parameter's size
    scheduled = "schedule" in terms.names and rng.random() < 0.4
    grads = draw_gradients(rng, shapes, steps, dtype)
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


def placed(case: Case, seed: int) -> Case:
    """The case with parameters of a tenth to once the size of the distance that each travels from zero."""
    rng = np.random.default_rng(seed)
    history = run(case)

    def start(name: str, p: NDArray[Any]) -> NDArray[Any]:
        reach = distance(history, name, p) or 1.0
        return (reach * 10 ** rng.uniform(-1, 0) * normal(rng, p.shape, p.dtype)).astype(p.dtype)

    return replace(case, params={name: start(name, p) for name, p in case.params.items()})


def decaying(rate: float) -> Callable[[Any], Any]:
    """A schedule, for the ints and the arrays of every library."""

    def schedule(count: Any) -> Any:
        count = count if isinstance(count, int) else jnp.asarray(count, jnp.result_type(float))
        return rate / (1 + count / 20)

    return schedule


def draw_value(rng: np.random.Generator, field: Field, default: Any) -> Any:
    """A legal value of a hyperparameter, in the neighbourhood of its default."""
    if bool in field.types:
        return bool(rng.integers(2))
    if float not in field.types and int not in field.types:
        return default
    if type(None) in field.types and rng.random() < 0.25:
        return None
    if int in field.types:
        return int(default + rng.integers(-2, 3) if default else rng.integers(0, 10))
    if field.complement and default == 0:  # a momentum that is off
        return float(rng.choice([0.0, rng.uniform(0.5, 0.99)]))
    if field.complement:
        return float(1 - (1 - default) * 10 ** rng.uniform(0, 0.8))
    if default == 0:  # a strength that is off
        return float(rng.choice([0.0, 10 ** rng.uniform(-3, -1)]))
    positive = field.range is not None and max(field.range.low, field.range.above) >= 0
    return float(default * (10 ** rng.uniform(-1, 1) if positive else rng.uniform(0.97, 1.03)))


def draw_options(
    rng: np.random.Generator,
    optimizer: type[Rule],
    names: Collection[str],
    seed: int,
    grads: list[Arrays],
    scheduled: bool,
) -> dict[str, Any]:
    """What surrounds the rule. The clips take turns, so that four seeds see them all; the rest is left to chance."""
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
        options["ema_overwrite_frequency"] = int(rng.integers(2, 20))  # without it the average would not show
    if "gradient_accumulation_steps" in names and not averaged and not scheduled and rng.random() < 0.4:
        options["gradient_accumulation_steps"] = int(rng.integers(2, 5))
    return options


def typical_size(clip: str, grads: list[Arrays]) -> float:
    """Of what `clip` limits: a limit in this neighbourhood clips at some steps and not at others."""
    norms = np.array([[np.linalg.norm(g) for g in each.values()] for each in grads])
    if clip == "clipnorm":
        return float(np.median(norms))
    if clip == "global_clipnorm":
        return float(np.median(np.linalg.norm(norms, axis=1)))
    return float(np.median(np.concatenate([np.abs(g).ravel() for each in grads for g in each.values()])))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Normal numbers; complex ones where `dtype` is."""
    x = rng.normal(size=shape)
    return np.asarray(x + 1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else x)


def draw_gradients(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], steps: int, dtype: Any
) -> list[Arrays]:
    """Normal gradients, of a size of its own for each array; those of "bias" are zero half the time."""
    sizes = {name: 10 ** rng.uniform(-6, 2) for name in shapes}

    def one(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        kept = rng.random(shape) < (0.5 if name == "bias" else 1.0)
        return (sizes[name] * kept * normal(rng, shape, dtype)).astype(dtype)

    return [{name: one(name, shape) for name, shape in shapes.items()} for _ in range(steps)]


def run(case: Case) -> History:
    """Our side."""
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


def to_numpy(params: Mapping[str, Any]) -> Arrays:
    return {name: np.array(p) for name, p in params.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The peers


class Absent(Exception):
    """Why there is nothing to compare with."""


class Peer(Protocol):
    """Another implementation. Its constructor raises `Absent` where it is not installed."""

    version: str

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        """What may be compared, an entry for each variant of ours. Raises `Absent`."""
        ...

    def run(self, case: Case) -> History:
        """The same case."""
        ...


def load(name: str) -> Any:
    """A library that need not be there, for the type checker neither."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{name} is not installed") from error


def parameters_of(function: Callable[..., Any]) -> Collection[str]:
    return inspect.signature(function).parameters


def name_of(optimizer: type[Rule]) -> str:
    """Of the file of the rule, and so of its function; in snake case.

    >>> name_of(optimizers.RULES["ScheduleFreeAdamW"])
    'schedule_free_adamw'
    """
    return optimizer.__module__.rpartition(".")[2]


def times(factor: float, rate: Rate) -> Rate:
    return (lambda count: factor * rate(count)) if callable(rate) else factor * rate


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """JAX's own promotion rules, which Keras and optax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def no_more() -> dict[str, Any]:
    return {}


class Agreement(NamedTuple):
    """Under which conditions a peer's optimizer is ours."""

    # Its arguments, from those of ours for which another name is not enough.
    more: Callable[..., dict[str, Any]] = no_more
    pinned: Mapping[str, Any] = {}  # arguments of ours that have to have one value
    scheduled: bool = True
    variant: str = "optax"
    decayed: bool = False  # torch: its weight decay is ours


class Dialect(NamedTuple):
    """How a peer's function takes our arguments."""

    function: Callable[..., Any]
    names: Mapping[str, str]  # its name for an argument of ours, where it has none of ours
    agreement: Agreement

    def name(self, ours: str) -> str | None:
        theirs = parameters_of(self.function)
        return next((name for name in (ours, self.names.get(ours)) if name in theirs), None)

    def knows(self, ours: str) -> bool:
        return self.name(ours) is not None or ours in parameters_of(self.agreement.more)

    def arguments(self, ours: dict[str, Any]) -> dict[str, Any]:
        """None stands for the function's own default, which then means the same."""
        more = self.agreement.more(**{name: ours[name] for name in parameters_of(self.agreement.more)})
        named = {self.name(name): x for name, x in ours.items() if x is not None}
        return {name: x for name, x in named.items() if name is not None} | more


class Keras:
    """The class of the same name in `keras.optimizers`, on the JAX backend."""

    def __init__(self) -> None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        self.keras = load("keras")
        self.version = self.keras.__version__
        if (backend := self.keras.config.backend()) != "jax":
            raise Absent(f"keras runs on {backend}: set KERAS_BACKEND=jax")

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        counterpart = getattr(self.keras.optimizers, optimizer.__name__, None)
        if counterpart is None:
            raise Absent(f"there is no keras.optimizers.{optimizer.__name__}")
        return [Terms("keras", {*parameters_of(counterpart), "exclude_from_weight_decay", "schedule"})]

    def run(self, case: Case) -> History:
        with default_promotion():
            variables = [self.keras.Variable(p, dtype=p.dtype.name, name=name) for name, p in case.params.items()]
            optimizer = self.optimizer(case)
            optimizer.build(variables)

            def step(carry: Any, grads: Arrays) -> Any:
                params, state = carry
                params, state = optimizer.stateless_apply(state, [grads[v.name] for v in variables], params)
                return (params, state), params

            start = [v.value for v in variables], [v.value for v in optimizer.variables]
            stacked = {v.name: np.stack([grads[v.name] for grads in case.grads]) for v in variables}
            history = jax.lax.scan(step, start, stacked)[1]
        return [
            to_numpy({v.name: p[i] for v, p in zip(variables, history, strict=True)}) for i in range(len(case.grads))
        ]

    def optimizer(self, case: Case) -> Any:
        make, options = getattr(self.keras.optimizers, case.optimizer.__name__), dict(case.options)
        excluded = options.pop("exclude_from_weight_decay", None)
        optimizer = make(learning_rate=self.rate(case.rate), **case.hyper, **options)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=list(excluded))
        return optimizer

    def rate(self, rate: Rate) -> Any:
        if not callable(rate):
            return rate

        class Schedule(self.keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step: Any) -> Any:
                return rate(jnp.asarray(step))

        return Schedule()


# What is not here is found by name: the function in `optax` or `optax.contrib`.
OPTAX = {
    "Adam": Agreement(lambda amsgrad: {}),  # a function of its own
    "AdamW": Agreement(lambda amsgrad: {}),
    "Adafactor": Agreement(lambda beta_2_decay: {"decay_rate": -beta_2_decay}),
    "Muon": Agreement(
        lambda learning_rate, adam_lr_ratio, muon_a, muon_b, muon_c: {
            "adam_learning_rate": times(adam_lr_ratio, learning_rate),
            "ns_coeffs": (muon_a, muon_b, muon_c),
        },
        pinned={"exclude_embeddings": False},
    ),
    "ScheduleFreeAdamW": Agreement(lambda warmup_steps: {"warmup_steps": warmup_steps or None}, scheduled=False),
}
OPTAX_NAMES = {
    "beta_1": "b1",
    "beta_2": "b2",
    "epsilon": "eps",
    "rho": "decay",
    "epsilon_1": "eps",
    "clip_threshold": "clipping_threshold",
    "weight_decay": "weight_decay_rate",
    "adam_beta_1": "adam_b1",
    "adam_beta_2": "adam_b2",
    "momentum": "beta",
    "rms_rate": "consistent_rms",
}


class Optax:
    """The function of the same name in `optax` or `optax.contrib`, among optax's transformations for the options."""

    def __init__(self) -> None:
        self.optax = load("optax")
        self.contrib = load("optax.contrib")
        self.version = self.optax.__version__

    def dialect(self, optimizer: type[Rule], amsgrad: bool = False) -> Dialect:
        name = "amsgrad" if amsgrad else name_of(optimizer)
        function = getattr(self.optax, name, None) or getattr(self.contrib, name, None)
        if function is None:
            raise Absent(f"there is no optax.{name}")
        return Dialect(function, OPTAX_NAMES, OPTAX.get(optimizer.__name__, Agreement()))

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        if "optax" not in optimizer.variants:
            raise Absent(f"{optimizer.__name__} has no optax variant")
        dialect = self.dialect(optimizer)
        names = {name for name in fields_of(optimizer) if dialect.knows(name)}
        names |= {"weight_decay", *CLIPS, "loss_scale_factor", "use_ema", "gradient_accumulation_steps"}
        names |= {"schedule"} if dialect.agreement.scheduled else set()
        return [Terms("optax", names, dialect.agreement.pinned)]

    def run(self, case: Case) -> History:
        with default_promotion():
            tx = self.transformation(case)
            params: Any = {name: jnp.asarray(p) for name, p in case.params.items()}
            state, average, history = tx.init(params), params, []

            @jax.jit
            def step(params: Any, state: Any, grads: Any) -> Any:
                updates, state = tx.update(grads, state, params)
                return self.optax.apply_updates(params, updates), state

            for count, grads in enumerate(case.grads, 1):
                params, state = step(params, state, grads)
                if case.options.get("use_ema"):
                    rate = 1 - case.options["ema_momentum"] if count > 1 else 1.0
                    average = self.optax.incremental_update(params, average, rate)
                    frequency = case.options["ema_overwrite_frequency"]
                    params = average if frequency and count % frequency == 0 else params
                history.append(to_numpy(params))
        return history

    def transformation(self, case: Case) -> Any:
        """All but the average, which in optax is the loop's affair."""
        unscale = self.optax.scale(1 / case.options.get("loss_scale_factor", 1.0))
        tx = self.optax.chain(unscale, self.clip(case), *self.decayed(case))
        k = case.options.get("gradient_accumulation_steps")
        return self.optax.MultiSteps(tx, k) if k else tx

    def clip(self, case: Case) -> Any:
        optax, options = self.optax, case.options
        if limit := options.get("global_clipnorm"):
            return optax.clip_by_global_norm(limit)
        if limit := options.get("clipvalue"):
            return optax.clip(limit)
        if limit := options.get("clipnorm"):  # the global norm, of one array at a time
            labels = {name: name for name in case.params}
            return optax.partition(dict.fromkeys(labels, optax.clip_by_global_norm(limit)), labels)
        return optax.identity()

    def decayed(self, case: Case) -> list[Any]:
        """The optimizer with its own weight decay, or with a decoupled one behind it."""
        dialect = self.dialect(case.optimizer, case.hyper.get("amsgrad", False))
        arguments = dialect.arguments({"learning_rate": case.rate} | case.hyper)
        decay = case.options["weight_decay"] or 0.0
        if name := dialect.name("weight_decay"):
            return [dialect.function(**arguments, **{name: decay})]
        return [dialect.function(**arguments), self.optax.add_decayed_weights(times(-decay, case.rate))]


def betas(beta_1: float, beta_2: float) -> dict[str, Any]:
    return {"betas": (beta_1, beta_2)}


TORCH = {
    "SGD": Agreement(lambda momentum, nesterov: {"nesterov": nesterov and momentum > 0}),
    "Adam": Agreement(betas, pinned={"amsgrad": False}),
    "AdamW": Agreement(betas, pinned={"amsgrad": False}, decayed=True),
    "Adamax": Agreement(betas),
    # Keras's and the paper's 0.96^t; torch's default is 0.96^(t / 250).
    "Nadam": Agreement(
        lambda beta_1, beta_2: betas(beta_1, beta_2) | {"momentum_decay": 1.0, "decoupled_weight_decay": True},
        variant="keras",
        decayed=True,
    ),
    # Torch adds epsilon to the root, ours is inside: one and the same once it is nothing but a guard.
    "RMSprop": Agreement(pinned={"epsilon": 1e-30}, scheduled=False),  # its rate is outside the momentum
    "Adagrad": Agreement(pinned={"epsilon": 1e-30}),
    "Adadelta": Agreement(decayed=True),
    # Torch's epsilons are a lower bound, of the root.
    "Adafactor": Agreement(
        lambda beta_2_decay, epsilon_1, epsilon_2: {"beta2_decay": beta_2_decay, "eps": (epsilon_1**0.5, epsilon_2)},
        pinned={"epsilon_1": 1e-30, "clip_threshold": 1.0},
        variant="keras",
    ),
}
TORCH_NAMES = {"learning_rate": "lr", "epsilon": "eps", "rho": "alpha"}


class Torch:
    """The class in `torch.optim`, of those that mean the same."""

    def __init__(self) -> None:
        self.torch = load("torch")
        self.version = self.torch.__version__

    def dialect(self, optimizer: type[Rule]) -> Dialect:
        name = {"Nadam": "NAdam"}.get(optimizer.__name__, optimizer.__name__)
        if optimizer.__name__ not in TORCH:
            raise Absent(f"torch.optim.{name} does not exist or is another optimizer")
        return Dialect(getattr(self.torch.optim, name), TORCH_NAMES, TORCH[optimizer.__name__])

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        dialect = self.dialect(optimizer)
        agreement = dialect.agreement
        names = {name for name in fields_of(optimizer) if dialect.knows(name)} | {"clipvalue"}
        names |= {"schedule"} if agreement.scheduled else set()
        names |= {"weight_decay"} if agreement.decayed else set()
        return [Terms(agreement.variant, names, agreement.pinned)]

    def run(self, case: Case) -> History:
        torch, dialect = self.torch, self.dialect(case.optimizer)
        params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in case.params.items()}
        rate = case.rate if callable(case.rate) else lambda count: case.rate
        decay = case.options.get("weight_decay") or 0.0
        arguments = dialect.arguments({"learning_rate": rate(0), "weight_decay": decay} | case.hyper)
        optimizer = dialect.function(list(params.values()), **arguments)
        history = []
        for count, grads in enumerate(case.grads):
            for name, p in params.items():
                p.grad = torch.tensor(grads[name])
            if limit := case.options.get("clipvalue"):
                torch.nn.utils.clip_grad_value_(list(params.values()), limit)
            optimizer.param_groups[0]["lr"] = rate(count)
            optimizer.step()
            history.append(to_numpy({name: p.detach().numpy() for name, p in params.items()}))
        return history


class Oracle:
    """The tests' float64 references in NumPy, of both variants."""

    def __init__(self) -> None:
        try:
            self.loop = load("tests.oracles.loop")
        except Absent:
            raise Absent("tests/oracles is not in the working directory") from None
        self.version = f"float64 on NumPy {np.__version__}"

    def module(self, optimizer: type[Rule]) -> Any:
        name = name_of(optimizer)
        try:
            return load(f"tests.oracles.{name}")
        except Absent:
            raise Absent(f"there is no tests/oracles/{name}.py") from None

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        self.module(optimizer)
        names = {*fields_of(optimizer), *fields_of(Options), "schedule"}
        return [Terms(variant, names) for variant in optimizer.variants]

    def run(self, case: Case) -> History:
        return self.optimizer(case).run(case.grads)

    def optimizer(self, case: Case) -> Any:
        options = dict(case.options)
        excluded = options.pop("exclude_from_weight_decay", ())
        arguments = options | case.hyper | {"exclude": excluded, "variant": case.variant}
        return self.loop.Loop(self.module(case.optimizer), case.params, case.rate, **arguments)


RULES = {name_of(rule): rule for rule in optimizers.RULES.values()}
PEERS: dict[str, Callable[[], Peer]] = {"keras": Keras, "optax": Optax, "torch": Torch, "oracle": Oracle}


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def distance(history: History, name: str, start: NDArray[Any]) -> float:
    """How far the elements of one parameter get from their start."""
    return farthest(params[name] - start for params in history)


def farthest(differences: Iterable[NDArray[Any]]) -> float:
    """The greatest absolute value; NaN if there is one, which Python's max would pass over."""
    return float(np.max([np.max(np.abs(x), initial=0.0) for x in differences], initial=0.0))


def difference(ours: History, theirs: History, case: Case) -> float:
    """The greatest of all parameters at all steps, relative to the distance that the parameter travels."""
    return max(relative(ours, theirs, name, start) for name, start in case.params.items())


def relative(ours: History, theirs: History, name: str, start: NDArray[Any]) -> float:
    """The difference of one parameter: infinite if something is not finite, absolute if it never moves."""
    apart = farthest(a[name] - b[name] for a, b in zip(ours, theirs, strict=True))
    travelled = distance(theirs, name, start)
    if not np.isfinite(apart) or not np.isfinite(travelled):
        return float("inf")
    return apart / travelled if travelled else apart


@dataclass(frozen=True)
class Cell:
    """One optimizer beside one peer. All but the first three fields are of the worst seed."""

    optimizer: str
    peer: str
    bar: float
    difference: float | None = None  # None: not compared
    reason: str | None = None  # why it is not compared
    seed: int | None = None
    settings: str | None = None
    ours_to_float64: float | None = None  # whose rounding it is
    peer_to_float64: float | None = None

    @property
    def passed(self) -> bool:
        return self.difference is None or self.difference <= self.bar

    def __str__(self) -> str:
        if self.difference is None:
            return "-"
        return f"{self.difference:.1e}" + ("" if self.passed else " !")


def compare(optimizer: type[Rule], name: str, peer: Peer | Absent, seeds: Iterable[int], steps: int) -> Cell:
    """The worst of `seeds`."""
    cell = Cell(optimizer.__name__, name, BARS.get(optimizer.__name__, BAR))
    try:
        if isinstance(peer, Absent):
            raise peer
        terms = peer.terms(optimizer)
    except Absent as absent:
        return replace(cell, reason=str(absent))
    for seed in seeds:
        for each in terms:
            case = draw(optimizer, each, seed, steps)
            ours, theirs = run(case), peer.run(case)
            found = difference(ours, theirs, case)
            if cell.difference is None or found > cell.difference:
                cell = replace(cell, difference=found, seed=seed, settings=str(case))
                cell = replace(cell, **third_opinion(ours, theirs, case))
    return cell


def third_opinion(ours: History, theirs: History, case: Case) -> dict[str, float | None]:
    """Both sides' differences from float64, where there is a reference."""
    try:
        exact = Oracle().run(case)
    except Absent:
        return {"ours_to_float64": None, "peer_to_float64": None}
    sides = {"ours_to_float64": ours, "peer_to_float64": theirs}
    return {side: difference(history, exact, case) for side, history in sides.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The table


class Report(NamedTuple):
    """What was compared, and how to compare it again."""

    command: str
    versions: dict[str, str]
    peers: list[str]
    rows: list[list[Cell]]  # one per optimizer, in the order of `peers`

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]

    @property
    def passed(self) -> bool:
        """No cell exceeds its bar, and there is one that could."""
        return all(cell.passed for cell in self.cells) and any(cell.difference is not None for cell in self.cells)

    @property
    def about(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def notes(self) -> list[str]:
        """Why cells are empty, and what exceeds its bar."""
        reasons: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.reason:
                reasons.setdefault(f"{cell.peer}: {cell.reason}", []).append(cell.optimizer)
        failures = [
            f"{c.optimizer} beside {c.peer}, seed {c.seed}: {c.difference:.1e} exceeds {c.bar:.0e}. From float64: ours "
            f"{shown(c.ours_to_float64)}, {c.peer} {shown(c.peer_to_float64)}. {c.settings}"
            for c in self.cells
            if not c.passed
        ]
        return [f"- {reason}" for reason in reasons] + [f"! {failure}" for failure in failures]

    def markdown(self) -> str:
        header = ["optimizer", *self.peers, "bar"]
        lines = [header, ["---"] * len(header)] + [texts(row) for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(self.notes())
        return f"`{self.command}`\n\n{table}\n\n{self.about}.\n" + (f"\n{notes}\n" if notes else "")

    def json(self) -> str:
        cells = [asdict(cell) for cell in self.cells]
        return json.dumps({"command": self.command, "versions": self.versions, "cells": cells}, indent=2) + "\n"


def shown(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1e}"


def texts(row: Sequence[Cell]) -> list[str]:
    return [row[0].optimizer, *map(str, row), f"{row[0].bar:.0e}"]


def aligned(line: Sequence[str]) -> str:
    return f"{line[0]:<18}" + "".join(f"{text:>10}" for text in line[1:])


def found(name: str) -> Peer | Absent:
    try:
        return PEERS[name]()
    except Absent as absent:
        return absent


def versions(peers: Mapping[str, Peer | Absent]) -> dict[str, str]:
    try:
        own = importlib.metadata.version("jaxopt_keras")
    except importlib.metadata.PackageNotFoundError:
        own = "(not installed)"
    ours = {"jaxopt_keras": own, "Python": platform.python_version(), "jax": jax.__version__}
    return ours | {name: peer.version for name, peer in peers.items() if not isinstance(peer, Absent)}


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxopt_keras.parity",
        description="Runs every optimizer beside Keras, optax, torch and float64, and prints the greatest differences, "
        "relative to the distance travelled. Exits with 1 if one exceeds its bar.",
    )
    names = list(RULES)
    parser.add_argument("--optimizer", nargs="+", type=str.lower, choices=names, default=names, metavar="NAME")
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5, help="how many random cases for each optimizer and peer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, with the settings of the worst")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    chosen = parsed(arguments)
    peers = {name: found(name) for name in chosen.peer}
    report = Report(shlex.join(["python", "-m", "jaxopt_keras.parity", *arguments]), versions(peers), list(peers), [])
    print(f"{report.command}\n{report.about}\n\n{aligned(['optimizer', *peers, 'bar'])}")
    for name in chosen.optimizer:
        row = [compare(RULES[name], n, peer, range(chosen.seeds), chosen.steps) for n, peer in peers.items()]
        report.rows.append(row)
        print(aligned(texts(row)), flush=True)
        jax.clear_caches()  # hundreds of programs, none of which comes back
    print("", *report.notes(), "every difference is within its bar" if report.passed else "FAILED", sep="\n")
    if chosen.json:
        chosen.json.write_text(report.json())
    if chosen.markdown:
        chosen.markdown.write_text(report.markdown())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
