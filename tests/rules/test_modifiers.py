"""Modifiers beside their float64 references, alone and around each other, to 1e-12 of the distance travelled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.rules import modifiers
from tests.oracles import adam, lamb, muon, sgd
from tests.oracles import modifiers as references
from tests.oracles.modifiers import of

SHAPES = {
    "dense/kernel": (4, 3),
    "dense/bias": (3,),
    "cube": (2, 3, 2),
    "conv": (1, 2, 2, 3),
    "scalar": (),
    "empty": (0, 3),
}
STEPS, RATE, DECAY = 12, 0.05, 0.1


class Layer(NamedTuple):
    """A modifier, its reference, and its numbers."""

    modifier: Any
    reference: Any
    numbers: dict[str, Any]


LAYERS = {
    "cautious": Layer(modifiers.Cautious, references.cautious, {"least": 0.5}),
    "cautious decay": Layer(modifiers.CautiousDecay, references.cautious_decay, {}),
    "mars": Layer(modifiers.Mars, references.mars, {"gamma": 0.1, "beta": 0.8}),
    "mars unclipped": Layer(modifiers.Mars, references.mars, {"gamma": 0.1, "clip": False}),
    "centralized": Layer(modifiers.Centralized, references.centralized, {}),
    "adaptive clip": Layer(modifiers.AdaptiveClip, references.adaptive_clip, {"clipping": 0.5}),
    "ortho grad": Layer(modifiers.OrthoGrad, references.ortho_grad, {}),
    "hyperball": Layer(modifiers.Hyperball, references.hyperball, {}),
    "lookahead": Layer(modifiers.Lookahead, references.lookahead, {"la_steps": 3, "la_alpha": 0.5}),
    "scaled rate": Layer(modifiers.ScaledRate, references.scaled_rate, {"pattern": "kernel", "factor": 0.25}),
    "schedule free": Layer(
        modifiers.ScheduleFree,
        references.schedule_free,
        {"momentum": 0.8, "weight_decay_at_y": 0.1, "r": 1.0, "weight_lr_power": 1.5},
    ),
}
BASES = {
    "sgd": (rules.SGD(RATE, momentum=0.5), of(sgd, momentum=0.5)),
    "adam": (rules.Adam(RATE), of(adam)),
    "lamb": (rules.Lamb(RATE), of(lamb)),
    "muon": (rules.Muon(RATE, adam_weight_decay=None), of(muon, adam_weight_decay=None)),
}
EVERYTHING = [(name, base) for name in LAYERS for base in ("sgd", "adam")]
EVERYTHING += [("cautious", "lamb"), ("schedule free", "lamb"), ("lookahead", "muon"), ("hyperball", "muon")]


def drawn(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def expected(reference: Any, params: Any, grads: list[Any], rate: Any) -> Any:
    slots = {name: reference.init(p, name) for name, p in params.items()}
    history = []
    for i, g in enumerate(grads):
        ends = {
            name: reference.update(g[name], p, slots[name], i + 1, rate(i), DECAY, name) for name, p in params.items()
        }
        params, slots = ({name: end[k] for name, end in ends.items()} for k in (0, 1))
        history.append(params)
    return history


def check(rule: Any, reference: Any, rate: Any = lambda step: RATE) -> None:
    params, grads = drawn(0), [drawn(1 + i) for i in range(STEPS)]
    history = expected(reference, params, grads, rate)
    kernel = Kernel(rule.bind({"learning_rate": rate}), Options(weight_decay=DECAY))
    ours: Any = {name: jnp.asarray(p) for name, p in params.items()}
    state = kernel.init(ours)
    for i, g in enumerate(grads):
        ours, state = kernel.step(ours, state, {n: jnp.asarray(x) for n, x in g.items()}, donate=False)
        for name, p in ours.items():
            travelled = max(np.max(np.abs(history[-1][name] - params[name]), initial=0), 1e-3)
            np.testing.assert_allclose(p, history[i][name], rtol=0, atol=1e-12 * travelled, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "base"), EVERYTHING)
def test_alone(name: str, base: str):
    rule, reference = BASES[base]
    layer = LAYERS[name]
    check(layer.modifier(rule, **layer.numbers), layer.reference(reference, **layer.numbers))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(6))
def test_around_each_other(seed: int):
    """Three of them, drawn at random, around a rule, with a rate that warms up from 0 and decays."""
    rng = np.random.default_rng(seed)
    names = [*rng.permutation([name for name in LAYERS if name != "cautious decay"])[:3]]
    base = [*BASES][seed % len(BASES)]
    rule, reference = BASES[base]
    cautious_decay = seed % 2 == 1 and base != "muon"
    if cautious_decay or base == "muon":  # the reference of "cautious" decays everything itself
        names = [name for name in names if name != "cautious"]
    averages = [name for name in names if name in ("lookahead", "schedule free")]
    names = [name for name in names if name not in averages[1:]]  # one average, around what changes steps
    names.sort(key=lambda name: name not in ("cautious", "hyperball"))
    for name in ["cautious decay"] * cautious_decay + names:
        layer = LAYERS[str(name)]
        rule, reference = layer.modifier(rule, **layer.numbers), layer.reference(reference, **layer.numbers)
    check(rule, reference, lambda step: RATE * real(step) / (1 + real(step) ** 2 / 8))


def real(step: Any) -> Any:
    return float(step) if isinstance(step, int) else step.astype(float)


def test_what_is_evaluated():
    params = {"w": jnp.array([1.0, -2.0])}
    for rule, wanted in (
        (modifiers.Lookahead(rules.SGD(0.5), la_steps=2, la_alpha=0.5), [1.0, -2.0]),
        (modifiers.ScheduleFree(rules.SGD(0.5)), [0.5, -2.5]),
        (modifiers.Centralized(modifiers.ScheduleFree(rules.SGD(0.5))), [0.5, -2.5]),
    ):
        kernel = Kernel(rule)
        p, state = kernel.step(params, kernel.init(params), {"w": jnp.ones(2)}, donate=False)
        np.testing.assert_allclose(kernel.averaged(p, state)["w"], wanted, rtol=1e-6)


# --- names


def test_numbers_slots_and_scalars_keep_their_names():
    rule = modifiers.ScheduleFree(modifiers.Mars(rules.SGD(0.1, momentum=0.5)), momentum=0.8)
    kernel = Kernel(rule)
    state = kernel.init({"w": jnp.ones(2)})
    assert {*state.slots} == {"z", "last_gradient", "momentum"} and [*state.scalars] == ["max_rate", "weight_sum"]
    assert kernel.hyper().keys() >= {"momentum", "inner_momentum", "gamma", "learning_rate", "r"}
    assert kernel.replace(inner_momentum=0.25, momentum=0.75).rule == modifiers.ScheduleFree(
        modifiers.Mars(rules.SGD(0.1, momentum=0.25)), momentum=0.75
    )
    assert rule.inner_momentum == 0.5 and rule.learning_rate == 0.1
    twice = Kernel(modifiers.Mars(modifiers.Mars(rules.Adam(), gamma=0.5)))
    slots = {"last_gradient", "inner_last_gradient", "momentum", "velocity"}
    assert {*twice.init({"w": jnp.ones(2)}).slots} == slots


def test_numbers_compile_nothing():
    one = Kernel(modifiers.Mars(rules.Adam(0.1, beta_1=0.5), gamma=0.1))
    other = Kernel(modifiers.Mars(rules.Adam(0.2, beta_1=0.25), gamma=0.2, beta=0.5))
    assert one.skeleton == other.skeleton and one != other and hash(one) != hash(other)
    assert one.replace(learning_rate=0.2, beta_1=0.25, gamma=0.2, beta=0.5) == other
    assert Kernel(modifiers.Mars(rules.Adam(), clip=False)).skeleton != one.skeleton


def test_schedules_of_both():
    gamma, beta = (lambda step: 0.1 * real(step)), (lambda step: 0.5 - 0.25 * real(step))
    kernel = Kernel(modifiers.Mars(rules.Adam(0.1, beta_1=beta), gamma=gamma))
    params = {"w": jnp.ones(3)}
    state, p = kernel.init(params), params
    p, state = kernel.step(p, state, params, donate=False)
    p, state = kernel.step(p, state, params, donate=False)
    q, other = params, kernel.init(params)
    for i in range(2):
        fixed = Kernel(modifiers.Mars(rules.Adam(0.1, beta_1=0.5 - 0.25 * i), gamma=0.1 * i))
        q, other = fixed.step(q, other, params, donate=False)
    np.testing.assert_allclose(p["w"], q["w"], rtol=1e-6)


def test_a_plan_names_all_of_them():
    kernel = Kernel(modifiers.ScaledRate(modifiers.Cautious(rules.Muon()), pattern="head", factor=2.0))
    plan = kernel.describe({"body": jnp.zeros((8, 8)), "head": jnp.zeros((8, 8)), "bias": jnp.zeros(8)})
    titles = {path: group.kind.rule for group in plan.groups for path in group.paths}
    assert titles == {
        "body": "Modifier(Cautious(Muon))",
        "head": "ScaledRate(Cautious(Muon))",
        "bias": "Modifier(Cautious(AdamPart))",
    }


# --- bad input


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: modifiers.Cautious(rules.Adam), TypeError, "`inner` of Cautious must be a rule"),
        (lambda: modifiers.Cautious(3), TypeError, "`inner` of Cautious must be a rule"),
        (lambda: modifiers.Cautious(rules.Adam(), least=0.0), ValueError, "`least` must be in"),
        (lambda: modifiers.Lookahead(rules.Adam(), la_steps=0), ValueError, "`la_steps` must be in"),
        (lambda: modifiers.CautiousDecay(rules.Lamb(variant="optax")), ValueError, "decoupled weight decay"),
        (lambda: modifiers.CautiousDecay(rules.Prodigy()), ValueError, "decoupled weight decay"),
        (lambda: modifiers.ScaledRate(rules.Adam(), pattern="("), ValueError, "`pattern` must hold regular"),
        (lambda: Kernel(modifiers.Mars(rules.Adam())).replace(rho=1.0), ValueError, "`rho` is not a run-time"),
        (lambda: Kernel(modifiers.Mars(rules.Adam())).replace(beta=2.0), ValueError, "`beta` must be in"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_pattern_that_matches_nothing_is_said():
    with pytest.warns(UserWarning, match="pattern"):
        Kernel(modifiers.ScaledRate(rules.Adam(), pattern="head", factor=2.0)).init({"body": jnp.ones(2)})


# --- one's own


class Doubled(jk.Rule):
    """An ordinary rule of a user."""

    def update(self, g, p, s, at):
        return -2 * at.lr * g, s


def test_around_a_rule_of_ones_own():
    params = {"w": jnp.ones(2)}
    kernel = Kernel(modifiers.Lookahead(Doubled(0.25), la_steps=1, la_alpha=0.5))
    p, _ = kernel.step(params, kernel.init(params), {"w": jnp.ones(2)}, donate=False)
    assert p["w"].tolist() == [0.75, 0.75]
    assert jax.tree.structure(kernel) == jax.tree.structure(kernel)


# --- functions and classes


def test_functions_and_classes_take_an_optimizer_and_its_options():
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.ones(2)}
    made = jk.lookahead(jk.cautious(jk.adamw(0.1, weight_decay=0.5)), la_steps=2, clipnorm=1.0)
    rule = modifiers.Lookahead(modifiers.Cautious(rules.AdamW(0.1)), la_steps=2)
    assert made == Kernel(rule, Options(weight_decay=0.5, clipnorm=1.0))
    assert jk.lookahead(jk.adam(0.1), learning_rate=0.2) == jk.lookahead(jk.adam(0.2))
    assert jk.lookahead(rules.AdamW(0.1)).options.weight_decay == 0.004
    assert jk.lookahead(Kernel(rules.AdamW(0.1))).options.weight_decay is None
    assert jk.schedule_free(jk.sgd(0.1)).options.master_weights == "float32"
    v, optimizer = (
        jk.Variable(params["w"], name="w"),
        jk.Lookahead(jk.Cautious(jk.AdamW(0.1, weight_decay=0.5)), la_steps=2, clipnorm=1.0),
    )
    state = made.init(params)
    for _ in range(3):
        params, state = made.step(params, state, grads, donate=False)
        optimizer.apply_gradients([(grads["w"], v)])
    np.testing.assert_allclose(v.value, params["w"], rtol=1e-6)
    assert optimizer.la_alpha == 0.8 and optimizer.least == 1e-3 and optimizer.weight_decay == 0.5
    optimizer.least = optimizer.beta_1 = 0.5
    assert "least=0.5" in repr(optimizer) and "beta_1=0.5" in repr(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jk.lookahead(jk.partition({"a": jk.sgd()}, default=jk.adam())),
        lambda: jk.lookahead(jk.loss_scaled(jk.adam())),
        lambda: jk.lookahead(jk.Kernel.from_optax(jk.adam())),
        lambda: jk.lookahead("adam"),
        lambda: jk.Lookahead(trained()),
    ],
)
def test_what_is_no_inner_optimizer(make):
    with pytest.raises(TypeError, match="`inner` of Lookahead must be a rule, a kernel of one rule"):
        make()


def trained() -> jk.Optimizer:
    optimizer = jk.Adam()
    optimizer.build([jk.Variable(np.ones(2))])
    return optimizer


def test_in_keras():
    keras, interop = pytest.importorskip("keras"), pytest.importorskip("jaxopt_keras.interop.keras")
    optimizer = interop.Lookahead(jk.Adam(0.1), la_steps=2)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is interop.Lookahead and again.get_config() == optimizer.get_config()
    v = keras.Variable(np.ones(2))
    again.apply([np.ones(2)], [v])
    np.testing.assert_allclose(v.numpy(), 0.9, rtol=1e-5)
