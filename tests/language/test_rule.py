"""The language of rules: annotations, checks, and the split into numbers and program."""

import ast
import inspect
import pathlib
import pickle
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxopt_keras as jk
from jaxopt_keras import Kernel, rules
from jaxopt_keras.language.numerics import Complemented
from jaxopt_keras.language.rule import (
    Amount,
    Count,
    Decay,
    Momentum,
    NonNegative,
    Number,
    Rate,
    Rule,
    Signed,
    Within,
    fields_of,
    with_python_numbers,
)
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS, stateful


class Toy(Rule):
    learning_rate: Rate = 0.1
    beta: Decay = 0.5
    momentum: Momentum = 0.0
    shift: Number = -1.0
    cap: Amount | None = None
    steps: Count = 3
    flag: bool = False

    class State(NamedTuple):
        mean: Signed | None = None


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"beta": 1.0}, ValueError, r"`beta` must be in \[0, 1\). Received: beta=1.0"),
        ({"beta": -0.1}, ValueError, "Received: beta=-0.1"),
        ({"beta": float("nan")}, ValueError, "`beta`"),
        ({"beta": None}, TypeError, "`beta` must be a number. Received: beta=None"),
        ({"beta": "0.9"}, TypeError, r"Received: beta='0.9' \(str\)"),
        ({"beta": True}, TypeError, "`beta`"),
        ({"beta": 0.5j}, TypeError, "`beta`"),
        ({"beta": np.ones(2)}, TypeError, "`beta`"),
        ({"learning_rate": -1}, ValueError, r"`learning_rate` must be in \[0, inf\)"),
        ({"learning_rate": float("inf")}, ValueError, "`learning_rate`"),
        ({"momentum": 1.5}, ValueError, r"`momentum` must be in \[0, 1\]"),
        ({"shift": float("inf")}, ValueError, "`shift`"),
        ({"cap": -1.0}, ValueError, "`cap`"),
        ({"cap": "a"}, TypeError, "`cap` must be a number or None"),
        ({"steps": 2.5}, TypeError, "`steps` must be an integer"),
        ({"steps": -1}, ValueError, "`steps`"),
        ({"flag": 1}, TypeError, "`flag` must be True or False"),
        ({"variant": "torch"}, ValueError, "`variant` must be one of"),
    ],
)
def test_what_is_refused(given, error, text):
    with pytest.raises(error, match=text):
        Toy(**given)


@pytest.mark.parametrize("value", [1, np.float64(1), np.float32(1), np.int64(1), np.array(1.0)])
def test_numbers_of_every_library_become_floats(value):
    assert type(Toy(learning_rate=value).learning_rate) is float


def test_arrays_stay_arrays_where_they_may_be_others_tomorrow():
    toy = Toy(learning_rate=jnp.float32(1), steps=jnp.int32(2), momentum=jnp.float32(0))
    assert isinstance(toy.learning_rate, jax.Array) and type(toy.steps) is int
    assert "momentum" in toy.traced() and "momentum" not in with_python_numbers(toy).traced()
    with pytest.raises(ValueError, match="`learning_rate` must be in"):
        Toy(learning_rate=jnp.float32(-1))
    with pytest.raises(TypeError, match="`learning_rate` must be a number"):
        Toy(learning_rate=jnp.ones(2))


def test_a_rule_without_an_optax_twin_says_so():
    with pytest.raises(ValueError, match=r"`variant` must be one of \['keras'\]. Received: variant='optax'"):
        rules.Ftrl(variant="optax")


class OptaxAlone(Rule):
    variants: ClassVar = ("optax",)

    def update(self, g, p, s, at):
        return (-at.lr if self.variant == "optax" else at.lr) * g, s


class OfOptaxAlone(OptaxAlone):
    pass


class Reversed(Rule):
    variants: ClassVar = ("optax", "keras")


@pytest.mark.parametrize("rule", [OptaxAlone, OfOptaxAlone, Reversed, rules.Ftrl, Toy])
def test_the_first_variant_is_the_default(rule):
    first = rule.variants[0]
    assert rule().variant == first and pickle.loads(pickle.dumps(rule())) == rule() == rule(variant=first)
    parameter = inspect.signature(rule).parameters["variant"]
    assert parameter.default == first and parameter.kind is parameter.KEYWORD_ONLY
    assert fields_of(rule)["variant"].choices == rule.variants
    for name in {"keras", "optax"} - set(rule.variants):
        with pytest.raises(ValueError, match="`variant` must be one of"):
            rule(variant=name)


def test_a_rule_of_optax_alone_in_both_faces():
    kernel = Kernel(OptaxAlone(0.5))
    np.testing.assert_array_equal(kernel.step(jnp.ones(2), kernel.init(jnp.ones(2)), jnp.ones(2))[0], 0.5)
    assert "OptaxAlone" in str(kernel.describe(jnp.ones(2)))
    cls = stateful(OptaxAlone)
    config = cls(0.5).get_config()
    assert "variant" not in config and cls.from_config(config).variant == "optax"
    v = jk.Variable(np.ones(2))
    cls.from_config(config).apply([np.ones(2)], [v])
    np.testing.assert_array_equal(v, 0.5)
    config = stateful(Reversed)(variant="keras").get_config()
    assert config["variant"] == "keras" and stateful(Reversed).from_config(config).variant == "keras"


def test_signatures_show_plain_types():
    shown = {p.name: inspect.formatannotation(p.annotation) for p in inspect.signature(jk.adamw).parameters.values()}
    assert shown["learning_rate"] == shown["beta_1"] == "float | collections.abc.Callable"
    assert shown["weight_decay"] == "float | None | collections.abc.Callable"
    assert shown["amsgrad"] == "bool" and shown["constraints"] == "Any"
    assert shown["variant"] == "Literal['keras', 'optax']"
    assert shown["gradient_accumulation_steps"] == "int | collections.abc.Callable[[typing.Any], typing.Any] | None"
    for make in (*FUNCTIONS.values(), *CLASSES.values()):
        assert "Annotated" not in str(inspect.signature(make))


# --- numbers kept once ------------------------------------------------------------------------------------------------


class Warming(Rule):
    """The rate grows from a hyperparameter on, by another one."""

    learning_rate: Rate = 0.5
    initial: Amount = 0.25
    growth: Amount = 2.0
    mu: Decay = 0.5

    class Scalars(NamedTuple):
        factor: Array
        mu: Array  # the start of which is a decay
        absent: Array | None = None

    def scalars(self):
        return self.Scalars(self.initial, self.mu)

    def advance(self, scalars, at):
        return scalars._replace(factor=scalars.factor * self.growth)

    def update(self, g, p, s, at):
        return -at.lr * at.scalars.factor * g, s


START, GRADS = {"a": jnp.ones(2), "b": jnp.zeros(())}, {"a": jnp.ones(2), "b": jnp.ones(())}


def moved(steps, initial=0.25, growth=2.0):
    """How far `Warming` gets."""
    return -0.5 * sum(initial * growth ** (i + 1) for i in range(steps))


WARMING = {
    "plain": Kernel(Warming()),
    "schedule": Kernel(Warming(learning_rate=lambda step: jnp.full((), 0.5))),
    "partition": jk.partition({"b": Kernel(Warming())}, default=Kernel(Warming())),
    "array": Kernel(Warming(initial=jnp.float32(0.25))),
}


@pytest.mark.parametrize("name", WARMING)
def test_scalars_start_from_hyperparameters(name):
    kernel, params = WARMING[name], START
    state = kernel.init(params)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(kernel.init, params)) == types
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), kernel.init(abstract)) == types
    if name != "partition":
        assert state.scalars == {"factor": 0.25, "mu": 0.5}
    inside = jax.jit(lambda p, s: kernel.step(p, s, GRADS))(params, jax.jit(kernel.init)(params))
    for _ in range(3):
        params, state = kernel.step(params, state, GRADS, donate=False)
    np.testing.assert_allclose(params["a"], 1 + moved(3), rtol=1e-6)
    np.testing.assert_allclose(params["b"], moved(3), rtol=1e-6)
    np.testing.assert_allclose(inside[0]["a"], 1 + moved(1), rtol=1e-6)
    updates, _ = kernel.update(GRADS, kernel.init(START), START)
    np.testing.assert_allclose(updates["b"], moved(1), rtol=1e-6)


def test_each_start_without_a_new_program():
    def run(initial):
        kernel = Kernel(Warming(initial=initial))
        return kernel.step(START, kernel.init(START), GRADS, donate=False)[0]["b"]

    for initial in (0.25, 0.5):
        np.testing.assert_allclose(run(initial), moved(1, initial), rtol=1e-6)
    starts = jnp.array([0.25, 0.5])
    np.testing.assert_allclose(jax.vmap(run)(starts), [moved(1, x) for x in (0.25, 0.5)], rtol=1e-6)


def test_scalars_of_hyperparameters_in_the_stateful_face():
    optimizer, v = jk.Optimizer.from_rule(Warming(initial=0.75)), jk.Variable(np.zeros(3))
    for _ in range(2):
        optimizer.apply([np.ones(3)], [v])
    np.testing.assert_allclose(v, moved(2, 0.75), rtol=1e-6)
    assert optimizer.state.scalars["factor"] == 3.0


def test_scalars_that_a_file_lacks_start_from_hyperparameters():
    kernel = Kernel(Warming(initial=0.75))
    state = kernel.init(START)
    for _ in range(2):
        _, state = kernel.step(START, state, GRADS, donate=False)
    saved = {n: x for n, x in jk.checkpoint.to_dict(state).items() if not n.startswith("scalars/")}
    assert jk.checkpoint.from_dict(kernel, START, saved).scalars == {"factor": 3.0, "mu": 0.5}


def test_numbers_and_program_come_apart():
    rule = Toy(learning_rate=0.3, beta=0.9)
    assert rule.traced() == {"learning_rate": 0.3, "beta": 0.9, "shift": -1.0}  # not momentum: off; not cap: None
    assert rule.skeleton() == Toy(beta=0.1, shift=2.0).skeleton()
    assert hash(rule.skeleton()) == hash(Toy().skeleton())
    assert rule.skeleton() != Toy(momentum=0.1).skeleton() != Toy(cap=1.0).skeleton() != Toy(steps=4).skeleton()
    assert isinstance(rule.arrays()["beta"], Complemented) and rule.arrays()["shift"].dtype == jnp.float32


def test_a_rule_is_an_immutable_value():
    assert Toy() == Toy() and "learning_rate=0.1" in repr(Toy()) and "beta=0.25" in repr(Toy(beta=0.25))
    with pytest.raises(AttributeError):
        Toy().beta = 0.1  # type: ignore[misc]  # a wrong write, on purpose


def test_annotations_are_read():
    fields = fields_of(Toy)
    assert [n for n, f in fields.items() if f.complement] == ["beta", "momentum"]
    assert [n for n, f in fields.items() if f.fixed == 0] == ["momentum"]
    assert str(Within(0, below=1)) == "[0, 1)" and str(Within(above=0, high=1)) == "(0, 1]"
    assert rules.Adam.slots()["velocity"].nonnegative and rules.Ftrl.slots()["linear"].exact
    assert rules.Adafactor.slots()["row"].lacks == (-1,)


def test_a_rule_needs_an_update():
    class Idle(Rule):
        gain: Annotated[float, Within(0)] = 1.0

    with pytest.raises(NotImplementedError, match="Idle needs `update"):
        kernel = Kernel(Idle())
        kernel.step(jnp.ones(2), kernel.init(jnp.ones(2)), jnp.ones(2))


def test_a_traced_rate_is_not_checked():
    def moved(rate):
        kernel = Kernel(rules.SGD(learning_rate=rate))
        return kernel.update(jnp.ones(2), kernel.init(jnp.ones(2)))[0]

    np.testing.assert_allclose(jax.vmap(moved)(jnp.array([0.5, 2.0])), [[-0.5, -0.5], [-2, -2]])


def test_a_slot_may_have_one_number_for_each_row():
    class OfRows(Rule):
        learning_rate: Rate = 0.5
        grain: ClassVar = "leaf"

        class State(NamedTuple):
            total: NonNegative

        def init(self, p):
            return self.State(jnp.zeros((*p.shape[:-1], 1), p.dtype))

        def update(self, g, p, s, at):
            total = s.total + jnp.sum(g * g, -1, keepdims=True)
            return -at.lr * g / jnp.sqrt(total), self.State(total)

    kernel, p = Kernel(OfRows()), jnp.ones((3, 4))
    p, state = kernel.step(p, kernel.init(p), p, donate=False)
    np.testing.assert_array_equal(p, 0.75)
    np.testing.assert_array_equal(state.slots["total"], np.full((3, 1), 4.0))


PACKAGE = pathlib.Path(jk.__file__).parent
BODIES = {
    f"{path.relative_to(PACKAGE)}:{node.name}": node.body
    for path in sorted(PACKAGE.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef) and node.name != "Optimizer"
}


def public_names(body: list[ast.stmt]) -> set[str]:
    """The public names that a class body defines."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", BODIES)
def test_a_class_has_few_public_names(name):
    """A class of more names than a reader keeps in mind is several classes."""
    assert len(public_names(BODIES[name])) <= 25


def test_public_names_are_counted():
    assert len([name for name in dir(Rule) if not name.startswith("_")]) <= 30  # inherited ones too
    text = "class A:\n  a = b, c = 1, 2\n  d: int\n  def e(self): ...\n  _f = 3"
    [node] = ast.parse(text).body
    assert isinstance(node, ast.ClassDef) and public_names(node.body) == set("abcde")
