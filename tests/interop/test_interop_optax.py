"""optax both ways: our kernels inside its wrappers, and every optimizer of its in both of our faces."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxopt_keras as jk
from jaxopt_keras.language.rule import fields_of

pytestmark = [
    pytest.mark.usefixtures("jax_defaults"),  # optax's own arithmetic needs implicit promotion
    pytest.mark.filterwarnings("ignore::DeprecationWarning:optax"),  # of its own aliases and arguments
    pytest.mark.filterwarnings("ignore::UserWarning:optax"),
]

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3) / 6 + 0.1, "s": jnp.float32(0.5)}
STEPS = 4


def loss(params):
    return sum(jnp.sum((x - 0.3) ** 2 * (1 + x**2)) for x in jax.tree.leaves(params))


EXTRA = {
    "value": lambda value, grads: value,
    "grad": lambda value, grads: grads,
    "value_fn": lambda value, grads: loss,
    "obj_fn": lambda value, grads: loss,
}


gradient = jax.jit(jax.value_and_grad(loss))


def near(a, b, atol=3e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=atol), a, b)


def trajectory(update, params, state, extra=()):
    """The parameters after each of some steps of the optax protocol."""
    update = jax.jit(update, static_argnames=("value_fn", "obj_fn")) if extra else update
    reached = []
    for _ in range(STEPS):
        value, grads = gradient(params)
        updates, state = update(grads, state, params, **{n: EXTRA[n](value, grads) for n in extra})
        params = optax.apply_updates(params, updates)
        reached.append(params)
    return reached


# ---------------------------------------------------------------------------------------------------------------------
# Our kernels inside optax


ROUNDING = 3e-6  # of optax's Adam, whose 1 - beta is a float32's


def adams() -> tuple[Any, Any]:
    """Ours and optax's."""
    return jk.adam(0.05, epsilon=1e-8, variant="optax"), optax.adam(0.05)


LABELS = {"a": "ours", "s": "plain"}
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: optax.chain(optax.clip(0.2), tx, optax.scale(0.5)),
    "named_chain": lambda tx: optax.named_chain(("first", optax.clip(0.2)), ("second", tx)),
    "multi_transform": lambda tx: optax.multi_transform({"ours": tx, "plain": optax.sgd(0.1)}, LABELS),
    "partition": lambda tx: optax.partition({"ours": tx, "plain": optax.set_to_zero()}, LABELS),
    "masked": lambda tx: optax.masked(tx, {"a": True, "s": False}),
    "freeze": lambda tx: optax.selective_transform(tx, freeze_mask={"a": False, "s": True}),
    "flatten": optax.flatten,
    "MultiSteps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 0),
    "with_extra_args_support": optax.with_extra_args_support,
    "reduce_on_plateau": lambda tx: optax.chain(tx, contrib.reduce_on_plateau(patience=1, rtol=0.5)),
    "schedule_free": lambda tx: contrib.schedule_free(tx, 0.05, b1=0.9),
    "mechanize": contrib.mechanize,
    "sam": lambda tx: contrib.sam(tx, optax.chain(contrib.normalize(), optax.sgd(0.05)), sync_period=2),
    "split_real_and_imaginary": contrib.split_real_and_imaginary,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_inside(wrapper):
    ours, theirs = (WRAPPERS[wrapper](tx) for tx in adams())
    extra = ("value",) if wrapper == "reduce_on_plateau" else ()
    near(*(trajectory(jax.jit(tx.update), PARAMS, tx.init(PARAMS), extra) for tx in (ours, theirs)), ROUNDING)


def test_inside_apply_if_finite():
    def run(tx):
        tx = optax.apply_if_finite(tx, max_consecutive_errors=3)
        update, params, state, reached = jax.jit(tx.update), PARAMS, tx.init(PARAMS), []
        for good in (1.0, jnp.nan, jnp.inf, 1.0):
            updates, state = update(jax.tree.map(lambda p, good=good: good * p, params), state, params)
            params = optax.apply_updates(params, updates)
            reached.append(params)
        assert int(state.total_notfinite) == 2
        return reached

    ours, theirs = adams()
    near(run(ours), run(theirs), ROUNDING)


def test_inside_lookahead():
    def run(tx):
        tx = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
        params = optax.LookaheadParams.init_synced(PARAMS)
        update, state, reached = jax.jit(tx.update), tx.init(params), []
        for _ in range(STEPS):
            updates, state = update(gradient(params.fast)[1], state, params)
            params = optax.apply_updates(params, updates)
            reached.append(params)
        return reached

    ours, theirs = adams()
    near(run(ours), run(theirs), ROUNDING)


def test_master_weights_go_through_update_as_far_as_it_can():
    """The protocol's amounts are added by optax, which rounds: only `step` is exact. So an optax loop should use it."""
    kernel = jk.adam(1e-3, rounding="stochastic", variant="optax")
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    updates, _ = kernel.update({"w": jnp.ones((64, 64), jnp.bfloat16)}, kernel.init(params), params)
    moved = optax.apply_updates(params, updates)["w"]
    assert moved.dtype == jnp.bfloat16 and len(np.unique(moved.astype(jnp.float32))) == 2


# ---------------------------------------------------------------------------------------------------------------------
# inject_hyperparams


def injected(factory, *, jit=True, **settings):
    """The end of a run in which the rate is set anew halfway, as users of `inject_hyperparams` do."""
    numbers = {n: type(p.default) for n, p in inspect.signature(factory).parameters.items()}
    statics = tuple(
        n for n, kind in numbers.items() if kind is int or n.endswith("fraction")
    )  # these shape the program
    tx = optax.inject_hyperparams(factory, static_args=statics)(learning_rate=0.1, **settings)

    def step(params, state):
        updates, state = tx.update(gradient(params)[1], state, params)
        return optax.apply_updates(params, updates), state

    run, params, state = jax.jit(step) if jit else step, PARAMS, tx.init(PARAMS)
    for i in range(STEPS):
        if i == 2:
            state.hyperparams["learning_rate"] = jnp.float32(0.01)
        params, state = run(params, state)
    return params


@pytest.mark.parametrize("jit", [True, False])
def test_injected_hyperparameters_count(jit):
    ours = injected(jk.adam, jit=jit, epsilon=1e-8, variant="optax")
    near(ours, injected(optax.adam), ROUNDING)
    near(injected(jk.sgd, jit=jit), injected(optax.sgd))  # its momentum of 0 has become a number that may change


@pytest.mark.parametrize("name", jk.optimizers.FUNCTIONS)
def test_every_factory_can_be_injected(name):
    factory = jk.optimizers.FUNCTIONS[name]
    defaults = {n: p.default for n, p in inspect.signature(factory).parameters.items()}
    statics = tuple(
        n for n, x in defaults.items() if type(x) is int or n.endswith("fraction")
    )  # they shape the program
    tx = optax.inject_hyperparams(factory, static_args=statics)(learning_rate=lambda step: 0.1 / (1 + step))
    state = tx.init(PARAMS)
    _, after = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_integers_shape_the_program():
    for dtype in (jnp.bfloat16, jnp.complex64):  # to which optax casts the numbers; in bfloat16 0.999 is 1
        low = {"w": jnp.ones(3, dtype)}
        with pytest.raises(TypeError, match="pass it `hyperparam_dtype=jnp.float32`"):
            jax.jit(optax.inject_hyperparams(jk.adam)(learning_rate=0.1).init)(low)
        tx = optax.inject_hyperparams(jk.adam, hyperparam_dtype=jnp.float32)(learning_rate=0.1)
        updates, _ = jax.jit(tx.update)(low, tx.init(low), low)
        assert jnp.allclose(updates["w"], -0.1)
    tx = optax.inject_hyperparams(jk.muon)(learning_rate=0.1)
    with pytest.raises(
        TypeError, match=r'`ns_steps` must be a constant of the compiled program.*pass `static_args=\("ns_steps",\)`'
    ):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


def test_a_number_given_as_an_array_is_the_kernels():
    @jax.jit
    def step(rate, params, state):
        return jk.sgd(rate).step(params, state, jax.tree.map(jnp.ones_like, params))

    params, state = step(0.5, PARAMS, jk.sgd(0.1).init(PARAMS))
    near(params, jax.tree.map(lambda p: p - 0.5, PARAMS))
    assert state.hyperparams == {}
    kernel = jk.sgd(jnp.float32(0.5))
    again, _ = kernel.replace(learning_rate=0.25).step(params, state, jax.tree.map(jnp.ones_like, PARAMS), donate=False)
    near(again, jax.tree.map(lambda p: p - 0.75, PARAMS))
    with pytest.raises(ValueError, match="`learning_rate` is not in the state.*kernel.replace"):
        kernel.replaced(kernel.init(PARAMS), learning_rate=0.2)
    kernel = jk.sgd(jnp.float32(0.5), inject_hyperparams="learning_rate")
    state = kernel.replaced(kernel.init(PARAMS), learning_rate=0.25)
    params, state = kernel.step(PARAMS, state, jax.tree.map(jnp.ones_like, PARAMS), donate=False)
    near(params, jax.tree.map(lambda p: p - 0.25, PARAMS))
    assert state.hyperparams == {"learning_rate": 0.25}
    parts = jk.partition({"a": jk.sgd(jnp.float32(0.25))}, default=jk.sgd(0.1))
    params, _ = parts.step(PARAMS, parts.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS), donate=False)
    near(params, {"a": PARAMS["a"] - 0.25, "s": PARAMS["s"] - 0.1})
    variable = jk.Variable([1.0])
    optimizer = jk.SGD(jnp.float32(0.5), momentum=jnp.float32(0.0))  # the stateful face has its numbers to itself
    optimizer.learning_rate = 0.25
    optimizer.apply_gradients([([1.0], variable)])
    assert variable.numpy().tolist() == [0.75] and optimizer.get_slot_names() == []
    assert jk.SGD.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


# ---------------------------------------------------------------------------------------------------------------------
# Every optimizer of optax in both of our faces


class Case(NamedTuple):
    """How an optimizer is made, where its defaults and a learning rate will not do, and what it needs."""

    make: Callable[[], Any] | None = None
    extra: tuple[str, ...] = ()  # keyword arguments besides the gradients
    without: tuple[str, ...] = ()  # parameters that optax itself does not take


SGD = lambda: optax.sgd(0.05)
SPECIAL = {
    "sm3": Case(without=("s",)),  # fails on scalars
    "lbfgs": Case(extra=("value", "grad", "value_fn")),
    "polyak_sgd": Case(extra=("value",)),
    "momo": Case(extra=("value",)),
    "momo_adam": Case(extra=("value",)),
    "reduce_on_plateau": Case(lambda: optax.chain(SGD(), contrib.reduce_on_plateau()), ("value",)),
    "sophia": Case(extra=("obj_fn",)),
    "sam": Case(lambda: contrib.sam(SGD(), optax.sgd(0.02), sync_period=2)),
    "mechanize": Case(lambda: contrib.mechanize(SGD())),
    "schedule_free": Case(lambda: contrib.schedule_free(SGD(), 0.05)),
    "split_real_and_imaginary": Case(lambda: contrib.split_real_and_imaginary(SGD())),
}
REFUSED = {
    "dpsgd": "takes a gradient for each example: they have not the parameters' shapes",
    "differentially_private_aggregate": "as dpsgd",
}


def makes_a_transformation(function: Any) -> bool:
    return inspect.isfunction(function) and "GradientTransformation" in str(
        inspect.signature(function).return_annotation
    )


def optimizers() -> dict[str, Any]:
    """The public factories of optimizers: `optax`'s aliases, and what `contrib` has besides parts of optimizers."""
    found = {n: f for n, f in vars(optax).items() if getattr(f, "__module__", "") == "optax._src.alias"}
    found |= {n: f for n, f in vars(contrib).items() if not n.startswith(("_", "scale_by_"))}
    return {n: f for n, f in found.items() if makes_a_transformation(f) and n not in REFUSED}


def made(name: str) -> Any:
    factory, case = optimizers()[name], SPECIAL.get(name, Case())
    takes_rate = "learning_rate" in inspect.signature(factory).parameters
    return case.make() if case.make else factory(**({"learning_rate": 0.05} if takes_rate else {}))


def test_the_lists_are_of_this_optax():
    assert len(optimizers()) >= 45 and SPECIAL.keys() <= optimizers().keys()
    assert not REFUSED.keys() & optimizers().keys() and all(hasattr(contrib, name) for name in REFUSED)


@pytest.mark.parametrize("name", optimizers())
def test_from_optax(name):
    case = SPECIAL.get(name, Case())
    tx, start = made(name), {n: p for n, p in PARAMS.items() if n not in case.without}
    expected = trajectory(tx.update, start, tx.init(start), case.extra)
    assert any(bool((x != y).any()) for x, y in zip(*map(jax.tree.leaves, (expected[-1], start)), strict=True))

    kernel, params = jk.Kernel.from_optax(tx), jax.tree.map(jnp.copy, start)
    state = kernel.init(params)
    variables = [jk.Variable(p, name=n) for n, p in start.items()]
    optimizer = jk.Optimizer.from_optax(tx)
    for wanted in expected:
        value, grads = gradient(params)
        params, state = kernel.step(params, state, grads, **{n: EXTRA[n](value, grads) for n in case.extra})
        near(params, wanted)
        if not case.extra:
            optimizer.apply_gradients(zip(grads.values(), variables, strict=True))
            near({v.path: v.value for v in variables}, wanted)


@pytest.mark.parametrize("name", [name for name, case in SPECIAL.items() if case.extra])
def test_what_is_missing_is_said(name):
    kernel = jk.Kernel.from_optax(made(name))
    with pytest.raises((TypeError, ValueError), match=r"needs more than gradients.*value=|obj_fn must be provided"):
        kernel.step(PARAMS, kernel.init(PARAMS), PARAMS, donate=False)
    optimizer, variable = jk.Optimizer.from_optax(made(name)), jk.Variable([1.0])
    with pytest.raises((TypeError, ValueError), match="more than gradients|obj_fn must be provided"):
        optimizer.apply_gradients([([1.0], variable)])
    assert variable.numpy().tolist() == [1.0]


@pytest.mark.parametrize("name", REFUSED)
def test_gradients_for_each_example_are_refused(name):
    settings = {"learning_rate": 0.1, "seed": 0} if name == "dpsgd" else {"key": 0}
    kernel = jk.Kernel.from_optax(getattr(contrib, name)(**settings, l2_norm_clip=1.0, noise_multiplier=0.1))
    grads = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    with pytest.raises(ValueError, match="must have the parameter's shape"):
        kernel.step(PARAMS, kernel.init(PARAMS), grads, donate=False)


def test_keywords_that_nobody_takes():
    kernel = jk.Kernel.from_optax(optax.polyak_sgd())
    state, value = kernel.init(PARAMS), jnp.float32(1.0)
    near(
        kernel.step(PARAMS, state, PARAMS, donate=False, value=value)[0],
        kernel.step(PARAMS, state, PARAMS, donate=False, value=value, other=lambda: 0)[0],
    )
    plain = jk.Kernel.from_optax(optax.GradientTransformation(optax.sgd(0.1).init, lambda g, s, p: (g, s)))
    plain.step(PARAMS, plain.init(PARAMS), PARAMS, donate=False, value=value, name="not an array")
    with pytest.raises(TypeError, match=r"`weight`, `flush` and `donate`. Received: \['other'\]"):
        jk.adam().step(PARAMS, jk.adam().init(PARAMS), PARAMS, donate=False, value=value, other=value)


def test_the_fields_that_are_not_numbers_refuse_what_is_not_known():
    for rule in jk.optimizers.RULES.values():
        for name, field in fields_of(rule).items():
            if not field.traced:
                with pytest.raises(TypeError, match=f"`{name}` must be a constant of the compiled program"):
                    jax.eval_shape(lambda x, rule=rule, name=name: rule(**{name: x}), 1)
