"""The loss of a step, and its random numbers, for rules that need them: in both faces, accumulated, scaled, mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.rules import modifiers

P = PartitionSpec
PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.25, 1.0]])}
GRADS = {"w": jnp.array([0.5, 1.0, -1.0]), "b": jnp.array([[1.0, 0.25]])}
LOSS = 1.5


class Told(jk.Rule):
    """p <- p - lr loss g."""

    takes = ("loss",)

    def update(self, g, p, s, at):
        return -at.lr * at.loss * g, s


def kernel(**options):
    return Kernel(Told(0.5), Options(**options))


def check(params, factor=LOSS):
    for name, p in params.items():
        np.testing.assert_allclose(p, PARAMS[name] - 0.5 * factor * GRADS[name], rtol=1e-6)


def test_step_and_update_take_it():
    one = kernel()
    state = one.init(PARAMS)
    check(one.step(PARAMS, state, GRADS, value=LOSS, donate=False)[0])
    check(optax.apply_updates(PARAMS, one.update(GRADS, state, PARAMS, value=LOSS)[0]))
    check(jax.jit(lambda p, s, g, f: one.step(p, s, g, value=f))(PARAMS, state, GRADS, LOSS)[0])
    for loss in (1.0, 2.0, jnp.float32(3)):
        check(one.step(PARAMS, state, GRADS, value=loss, donate=False)[0], float(loss))
    assert one.compiled.step._cache_size() == 1


def test_without_it_nothing_changes():
    one = kernel()
    state = one.init(PARAMS)
    with pytest.raises(ValueError, match="This optimizer needs the loss of the gradients. Received: none"):
        one.step(PARAMS, state, GRADS)
    with pytest.raises(ValueError, match="needs the loss"):
        one.update(GRADS, state, PARAMS)
    check(one.step(PARAMS, state, GRADS, value=LOSS, donate=False)[0])
    v, optimizer = jk.Variable(PARAMS["w"]), jk.Optimizer.from_rule(Told(0.5))
    with pytest.raises(ValueError, match="apply_gradients"):
        optimizer.apply_gradients([(GRADS["w"], v)])
    assert v.numpy().tolist() == PARAMS["w"].tolist() and int(optimizer.iterations) == 0


def test_others_need_none_and_take_it():
    other = jk.sgd(0.5)
    check(other.step(PARAMS, other.init(PARAMS), GRADS, value=LOSS, donate=False)[0], 1.0)
    with pytest.raises(TypeError, match="`step` takes"):
        other.step(PARAMS, other.init(PARAMS), GRADS, loss=LOSS)


def test_of_scaled_gradients():
    scaled = jax.tree.map(lambda g: 4 * g, GRADS)
    one = kernel(loss_scale_factor=4.0)
    check(one.step(PARAMS, one.init(PARAMS), scaled, value=4 * LOSS, donate=False)[0])
    dynamic = jk.loss_scaled(kernel(), 4.0)
    check(dynamic.step(PARAMS, dynamic.init(PARAMS), scaled, value=4 * LOSS, donate=False)[0])


def test_the_mean_of_accumulated_ones():
    one = kernel(gradient_accumulation_steps=3)
    params, state = PARAMS, one.init(PARAMS)
    for _ in range(2):  # two windows: the second starts anew
        before = params
        for factor in (0.5, 1.0, 1.5):
            grads = jax.tree.map(lambda g, factor=factor: factor * g, GRADS)
            params, state = one.step(params, state, grads, value=factor * LOSS, donate=False)
        check({name: p - before[name] + PARAMS[name] for name, p in params.items()})
    assert set(state.scalars) == {"micro_step", "loss_accumulator"}


def test_of_a_mapped_axis_and_of_groups():
    one, mesh = kernel(axis_name="data"), jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    parts = jax.tree.map(lambda x: jnp.stack([x * f for f in (0.1, 0.2, 0.3, 0.4)]), (GRADS, jnp.float32(LOSS)))

    def step(params, state, part):
        grads, loss = jax.tree.map(lambda x: x[0], part)
        return one.step(params, state, grads, value=loss)[0]

    specs = dict(in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False)
    check(jax.jit(jax.shard_map(step, mesh=mesh, **specs))(PARAMS, one.init(PARAMS), parts))
    groups = jk.partition({"w": kernel()}, default=kernel())
    check(groups.step(PARAMS, groups.init(PARAMS), GRADS, value=LOSS, donate=False)[0])


def test_in_the_stateful_face():
    variables = {name: jk.Variable(p, name=name) for name, p in PARAMS.items()}
    for wrap in (lambda o: o, lambda o: jk.LossScaleOptimizer(o, 1.0), lambda o: jk.MultiOptimizer(jk.OptimizerMap(o))):
        for name, v in variables.items():
            v.assign(PARAMS[name])
        optimizer = wrap(jk.Optimizer.from_rule(Told(0.5)))
        optimizer.apply_gradients(((GRADS[name], v) for name, v in variables.items()), loss=LOSS)
        check({name: v.value for name, v in variables.items()})
    v, optimizer = jk.Variable([1.0, 2.0]), jk.Optimizer.from_rule(Told(0.5))
    optimizer.minimize(lambda: jnp.sum(v.value), [v])  # the loss is 3
    assert v.numpy().tolist() == [-0.5, 0.5]
    (new,), _ = optimizer.stateless_apply([x.value for x in optimizer.variables], [np.ones(2)], [np.ones(2)], loss=2.0)
    assert np.asarray(new).tolist() == [0.0, 0.0]


def test_in_a_modifier():
    one = Kernel(modifiers.Lookahead(Told(0.5), la_steps=2))
    check(one.step(PARAMS, one.init(PARAMS), GRADS, value=LOSS, donate=False)[0])


# --- the rules that need it


CENTER = {"w": jnp.array([3.0, -2.0, 1.0]), "b": jnp.array([[0.5, 8.0]])}


def bowl(p):
    return sum(jnp.sum(jnp.arange(1.0, 1 + p[n].size).reshape(c.shape) * (p[n] - c) ** 2) for n, c in CENTER.items())


@pytest.mark.usefixtures("x64", "jax_defaults")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: jk.polyak_sgd(), lambda: optax.polyak_sgd()),
        (lambda: jk.polyak_sgd(f_min=0.5, eps=0.1), lambda: optax.polyak_sgd(f_min=0.5, eps=0.1)),
        (lambda: jk.polyak_sgd(f_min=9.0, plus=True), lambda: optax.polyak_sgd(f_min=9.0, variant="sps+")),
        (lambda: jk.momo(), lambda: optax.contrib.momo()),
        (lambda: jk.momo(0.3, weight_decay=0.1), lambda: optax.contrib.momo(0.3, weight_decay=0.1)),
        (
            lambda: jk.momo(0.5, lower_bound=-1.0, adapt_lower_bound=True, weight_decay=0.1),
            lambda: optax.contrib.momo(0.5, lower_bound=-1.0, adapt_lower_bound=True, weight_decay=0.1),
        ),
        (lambda: jk.momo_adam(), lambda: optax.contrib.momo_adam()),
        (lambda: jk.momo_adam(1.0, lower_bound=0.2), lambda: optax.contrib.momo_adam(1.0, lower_bound=0.2)),
        (
            lambda: jk.momo_adam(0.3, beta_1=0.8, lower_bound=-1.0, adapt_lower_bound=True, weight_decay=0.1),
            lambda: optax.contrib.momo_adam(0.3, 0.8, lower_bound=-1.0, adapt_lower_bound=True, weight_decay=0.1),
        ),
    ],
)
def test_beside_optax(ours, theirs):
    one, other = ours(), theirs()
    p = q = jax.tree.map(lambda x: x.astype(float), PARAMS)
    state, s = one.init(p), other.init(q)
    for _ in range(15):
        value, grads = jax.value_and_grad(bowl)(p)
        p, state = one.step(p, state, grads, value=value, donate=False)
        value, grads = jax.value_and_grad(bowl)(q)
        u, s = other.update(grads, s, q, value=value)
        q = optax.apply_updates(q, u)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), p, q)


# --- random numbers


def test_noise_is_of_its_array_its_step_and_the_seed():
    def noise(steps, seed=None, **params):
        one = Kernel(modifiers.Noisy(rules.SGD(1.0), eta=4.0, gamma=0.0), Options(seed=seed))
        zeros = jax.tree.map(jnp.zeros_like, params)
        p, state = zeros, one.init(zeros)
        for _ in range(steps):
            before = p
            p, state = one.step(p, state, zeros, donate=False)
        return {name: np.asarray(x - before[name]) for name, x in p.items()}

    params = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((64, 64))}
    first = noise(1, **params)
    assert 1.9 < first["a"].std() < 2.1 and abs(first["a"].mean()) < 0.1
    np.testing.assert_array_equal(first["a"], noise(1, **params)["a"])
    for other in (first["b"], noise(2, **params)["a"], noise(1, seed=1, **params)["a"]):
        assert abs(np.corrcoef(first["a"].ravel(), other.ravel())[0, 1]) < 0.1
    packed = Kernel(modifiers.Noisy(rules.SGD(1.0)))
    assert "the rule needs whole arrays" in packed.describe(jk.pack(params)).notes[0]


def test_noise_falls():
    one = Kernel(modifiers.Noisy(rules.SGD(1.0), eta=1.0, gamma=2.0))
    zeros, sizes = {"w": jnp.zeros(4096)}, []
    p, state = zeros, one.init(zeros)
    for _ in range(4):
        q, state = one.step(p, state, zeros, donate=False)
        sizes.append(float((q["w"] - p["w"]).std()))
        p = q
    np.testing.assert_allclose(sizes, [1, 1 / 2, 1 / 3, 1 / 4], rtol=0.1)
