"""The second gradient: in both faces, jitted, scanned, accumulated, scaled, mapped, in groups; and refusals."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.language.second import Looking
from jaxopt_keras.rules import modifiers
from tests.laws.cases import assert_close

P = PartitionSpec
PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.25, 1.0]])}
RHO = 0.25


def loss(params, x=1.0):
    return x * (jnp.sum(jnp.sin(params["w"]) * params["w"]) + jnp.sum(params["b"] ** 4))


def kernel(**options) -> Any:
    return Kernel(modifiers.SAM(rules.SGD(0.125, momentum=0.5), rho=RHO), Options(**options))


def expected(params, fs, momentum=0.5):
    """SAM around SGD, written out."""
    m = jax.tree.map(jnp.zeros_like, params)
    for f in fs:
        g = jax.grad(f)(params)
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
        h = jax.grad(f)(jax.tree.map(lambda p, g, norm=norm: p + RHO * g / norm, params, g))
        m = jax.tree.map(lambda m, h: momentum * m - 0.125 * h, m, h)
        params = jax.tree.map(jnp.add, params, m)
    return params


def run(one, params, fs, **options):
    state = one.init(params)
    for f in fs:
        params, state = one.step(params, state, jax.grad(f)(params), value_fn=f, donate=False, **options)
    return params, state


def near(actual, wanted):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=3e-6, atol=1e-7), actual, wanted)


def test_step_update_and_minimize():
    one, wanted = kernel(), expected(PARAMS, [loss] * 3)
    near(run(one, PARAMS, [loss] * 3)[0], wanted)
    assert one.compiled.step._cache_size() == 1
    params, state = PARAMS, one.init(PARAMS)
    for _ in range(3):
        amounts, state = one.update(jax.grad(loss)(params), state, params, value_fn=loss)
        params = optax.apply_updates(params, amounts)
    near(params, wanted)
    params, state = PARAMS, one.init(PARAMS)
    for _ in range(3):
        before = loss(params)
        params, state, value = one.minimize(loss, params, state, donate=False)
        np.testing.assert_allclose(value, before, rtol=1e-6)
    near(params, wanted)


def test_minimize_works_for_every_kernel_and_compiles_once():
    traces = []

    def traced(params, x):
        traces.append(x)
        return loss(params, x)

    one = jk.adam(0.1)
    params, state = PARAMS, one.init(PARAMS)
    other, moved = PARAMS, one.init(PARAMS)
    for x in (1.0, 2.0, 3.0):
        params, state, _ = one.minimize(traced, params, state, jnp.float32(x), donate=False)
        other, moved = one.step(other, moved, jax.grad(loss)(other, x), donate=False)
    near(params, other)
    assert len(traces) == 1
    polyak = jk.polyak_sgd(1.0)
    assert polyak.minimize(loss, PARAMS, polyak.init(PARAMS), donate=False)[2] == loss(PARAMS)
    sam, traces[:] = kernel(), []
    params, state = jax.tree.map(jnp.copy, PARAMS), sam.init(PARAMS)
    for x in (1.0, 2.0, 3.0):
        params, state, _ = sam.minimize(traced, params, state, jnp.float32(x))
    assert len(traces) == 2  # the gradient, and the second one


def test_words_of_optax():
    one, wanted = kernel(), expected(PARAMS, [loss])
    g, state = jax.grad(loss)(PARAMS), one.init(PARAMS)
    step = functools.partial(one.step, PARAMS, state, g, donate=False)
    near(step(value_fn=loss, value=loss(PARAMS), grad=g)[0], wanted)
    near(step(obj_fn=loss)[0], wanted)
    near(step(grad_fn=lambda p, _: jax.grad(loss)(p))[0], wanted)
    near(step(value_fn=loss, x=jnp.float32(1))[0], wanted)
    near(step(value_fn=functools.partial(loss, x=jnp.float32(1)))[0], wanted)
    near(step(value_fn=jax.tree_util.Partial(loss, x=1.0))[0], wanted)
    near(one.update(g, state, PARAMS, value_fn=loss, unknown=3)[0], jax.tree.map(jnp.subtract, wanted, PARAMS))
    other = jk.sgd(0.125)  # one that needs none ignores it
    near(other.step(PARAMS, other.init(PARAMS), g, value_fn=loss, donate=False)[0], expected_sgd(g))


def expected_sgd(g):
    return jax.tree.map(lambda p, g: p - 0.125 * g, PARAMS, g)


def test_a_batch_compiles_nothing():
    one, traces = kernel(), []

    def counted(params, x):
        traces.append(1)
        return loss(params, x)

    params, state = PARAMS, one.init(PARAMS)
    for x in (1.0, 2.0, 3.0):
        g = jax.grad(loss)(params, x)
        params, state = one.step(params, state, g, value_fn=counted, x=jnp.float32(x), donate=False)
    for x in (4.0, 5.0):
        g = jax.grad(loss)(params, x)
        params, state = one.step(params, state, g, value_fn=functools.partial(counted, x=jnp.float32(x)), donate=False)
    near(params, expected(PARAMS, [functools.partial(loss, x=x) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]))
    assert len(traces) == 2  # with keywords of the call, and of a partial function


def test_keys_and_integers_among_the_arguments():
    one = kernel()
    noisy = lambda p, key, n: loss(p) + 0.0 * jax.random.normal(key) * n.astype(jnp.float32)
    found, _, _ = one.minimize(noisy, PARAMS, one.init(PARAMS), jax.random.key(0), jnp.arange(3)[1], donate=False)
    near(found, expected(PARAMS, [loss]))


def test_many_functions_are_told():
    one, params = kernel(), PARAMS
    state = one.init(params)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in range(12):
            one.step(params, state, params, value_fn=lambda p, x=x: loss(p, x / 10), donate=False)
    assert [str(w.message) for w in caught if "compiled anew" in str(w.message)] and len(caught) == 1


def test_in_jit_and_scan():
    one, xs = kernel(), jnp.array([1.0, 0.5, 2.0])

    @jax.jit
    def train(params):
        def body(carry, x):
            params, state = carry
            f = lambda p: loss(p, x)
            return one.step(params, state, jax.grad(f)(params), value_fn=f), ()

        return jax.lax.scan(body, (params, one.init(params)), xs)[0][0]

    fs = [functools.partial(loss, x=x) for x in xs]
    near(train(PARAMS), expected(PARAMS, fs))

    def minimized(carry, x):
        params, state, _ = one.minimize(loss, *carry, x)
        return (params, state), ()

    near(jax.lax.scan(minimized, (PARAMS, one.init(PARAMS)), xs)[0][0], expected(PARAMS, fs))


def test_accumulated_calls_look_on_their_own():
    """The mean of the second gradients of each call: m-sharpness."""
    one, fs = kernel(gradient_accumulation_steps=2), [functools.partial(loss, x=x) for x in (0.5, 1.5)]
    params, state = run(one, PARAMS, fs)
    norm = [optax.tree.norm(jax.grad(f)(PARAMS)) for f in fs]
    second = [
        jax.grad(f)(jax.tree.map(lambda p, g, n=n: p + RHO * g / n, PARAMS, jax.grad(f)(PARAMS)))
        for f, n in zip(fs, norm, strict=True)
    ]
    near(params, jax.tree.map(lambda p, a, b: p - 0.125 * (a + b) / 2, PARAMS, *second))
    assert int(state.count) == 1
    params, state = one.flush(params, state)  # an empty window needs no function
    assert int(state.count) == 1


@pytest.mark.parametrize("option", [{"loss_scale_factor": 8.0}, {}])
def test_of_scaled_losses(option):
    wanted = expected(PARAMS, [loss] * 2)
    one = kernel(**option) if option else jk.loss_scaled(kernel(), 8.0)
    near(run(one, PARAMS, [lambda p: 8.0 * loss(p)] * 2)[0], wanted)
    params, state, value = PARAMS, one.init(PARAMS), jnp.nan
    for _ in range(2):
        params, state, value = one.minimize(loss, params, state, donate=False)
    near(params, wanted)
    np.testing.assert_allclose(value, loss(expected(PARAMS, [loss])), rtol=1e-6)


def test_of_groups():
    """Each group looks where its own gradients point, and the others stay."""
    one = jk.partition({"w": kernel()}, default=kernel())
    params, _ = run(one, PARAMS, [loss])
    for name in PARAMS:
        own = lambda p, name=name: loss(PARAMS | p)
        near({name: params[name]}, expected({name: PARAMS[name]}, [own]))
    mixed = jk.partition({"w": kernel()}, default=jk.sgd(0.125))
    params, state, _ = mixed.minimize(loss, PARAMS, mixed.init(PARAMS), donate=False)
    near(params["b"], expected_sgd(jax.grad(loss)(PARAMS))["b"])
    guarded = jk.partition({"w": kernel(skip_nonfinite=True)}, default=jk.sgd(0.125, skip_nonfinite=True))
    near(guarded.minimize(loss, PARAMS, guarded.init(PARAMS), donate=False)[0], params)


def test_clipping_and_guards_see_the_second_gradient():
    clipped = kernel(global_clipnorm=0.5)
    params, _ = run(clipped, PARAMS, [loss])
    np.testing.assert_allclose(optax.tree.norm(jax.tree.map(jnp.subtract, params, PARAMS)), 0.125 * 0.5, rtol=1e-5)
    one = kernel(skip_nonfinite=True)
    g = jax.grad(loss)(PARAMS)
    bad = lambda p: jnp.where(p["w"][0] == PARAMS["w"][0], loss(p), jnp.nan)
    params, state = one.step(PARAMS, one.init(PARAMS), g, value_fn=lambda p: bad(p) * loss(p), donate=False)
    assert int(state.scalars["skipped"]) == 1 and int(state.count) == 0
    near(params, PARAMS)
    plain = kernel()
    params, _ = plain.step(PARAMS, plain.init(PARAMS), g, value_fn=lambda p: jnp.nan * loss(p), donate=False)
    assert bool(jnp.isnan(params["w"]).all())  # it shows


def test_sharded_and_mapped():
    mesh, one = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), kernel()
    params = {"w": jnp.linspace(-1.0, 2.0, 8), "b": jnp.ones((4, 2))}
    put = lambda tree: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), tree)
    sharded, _ = run(one, put(params), [loss] * 2)
    near(sharded, expected(params, [loss] * 2))
    assert sharded["w"].sharding.shard_shape((8,)) == (2,)
    zero1 = jk.sharding.zero1(one, mesh, "data")
    params, _, _ = zero1.minimize(loss, params, zero1.init(params), donate=False)
    near(params, expected({"w": jnp.linspace(-1.0, 2.0, 8), "b": jnp.ones((4, 2))}, [loss]))
    mapped, xs = kernel(axis_name="data"), jnp.array([0.1, 0.2, 0.3, 0.4])

    def step(params, state, x):
        f = lambda p: loss(p, x[0])
        return mapped.step(params, state, jax.grad(f)(params), value_fn=f)[0]

    for check in (False, True):
        specs: Any = dict(in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=check)
        found = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(PARAMS, mapped.init(PARAMS), xs)
        near(found, expected(PARAMS, [loss]))


def test_dtypes_shapes_and_absent_gradients():
    params = {"w": jnp.array(0.5), "b": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(2), "e": jnp.ones((0, 2))}
    params |= {"key": jax.random.key(0), "frozen": jnp.ones(2)}

    def f(p):
        assert p["b"].dtype == jnp.bfloat16 and p["n"].dtype == jnp.int32
        return p["w"] ** 2 + jnp.sum(p["b"].astype(jnp.float32) ** 2) + jnp.sum(p["frozen"]) * p["w"]

    one, g = kernel(), {"w": jnp.array(3.0), "b": 2 * params["b"], "n": None, "e": params["e"], "key": None}
    g["frozen"] = None
    new, state = one.step(params, one.init(params), g, value_fn=f, donate=False)
    norm = (9 + 3 * 4) ** 0.5
    np.testing.assert_allclose(new["w"], 0.5 - 0.125 * (2 * (0.5 + RHO * 3 / norm) + 2), rtol=1e-6)
    assert new["frozen"].tolist() == [1, 1] and new["n"].tolist() == [0, 1] and new["b"].dtype == jnp.bfloat16
    found = one.minimize(f, params, one.init(params), donate=False)[0]
    assert found["n"].tolist() == [0, 1] and found["key"] == params["key"] and not bool((found["frozen"] == 1).any())
    other = {"w": jnp.ones((2, 2)), "b": jnp.ones((1, 1))}  # other shapes
    near(run(one, other, [loss])[0], expected(other, [loss]))
    packed = jk.pack({"w": PARAMS["w"], "b": PARAMS["b"]})
    apart = lambda p: loss(p.unpack())
    near(run(one, packed, [apart])[0].unpack(), expected(PARAMS, [loss]))
    near(run(kernel(clipnorm=1e9), packed, [apart])[0].unpack(), expected(PARAMS, [loss]))  # unpacked inside


def test_in_the_stateful_face():
    variables = {name: jk.Variable(p, name=name) for name, p in PARAMS.items()}
    f = lambda: loss({name: v.value for name, v in variables.items()})
    rule = modifiers.SAM(rules.SGD(0.125, momentum=0.5), rho=RHO)
    for wrap in (lambda o: o, lambda o: jk.LossScaleOptimizer(o, 8.0)):
        for name, v in variables.items():
            v.assign(PARAMS[name])
        optimizer = wrap(jk.Optimizer.from_rule(rule))
        for _ in range(3):
            optimizer.minimize(lambda optimizer=optimizer: optimizer.scale_loss(f()), [*variables.values()])
        near({name: v.value for name, v in variables.items()}, expected(PARAMS, [loss] * 3))
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(jk.Optimizer.from_rule(rule)))
    with pytest.raises(TypeError, match="takes no second gradients"):
        optimizer.minimize(f, [*variables.values()])
    before = {name: v.numpy() for name, v in variables.items()}
    optimizer = jk.Optimizer.from_rule(rule)
    with pytest.raises(ValueError, match="This optimizer needs the loss function"):
        optimizer.apply_gradients((PARAMS[name], v) for name, v in variables.items())
    with pytest.raises(TypeError, match="`second` must be a function"):
        optimizer.apply_gradients(((PARAMS[name], v) for name, v in variables.items()), second=3)
    with pytest.raises(ZeroDivisionError):
        optimizer.apply_gradients(((PARAMS[n], v) for n, v in variables.items()), second=lambda points: 1 / 0)
    assert int(optimizer.iterations) == 0
    assert all(v.numpy().tolist() == before[name].tolist() for name, v in variables.items())


def test_a_loss_that_assigns_does_so_once():
    v, calls = jk.Variable([1.0, 2.0]), jk.Variable(0.0, trainable=False)

    def f():
        calls.assign_add(1.0)
        return jnp.sum(v.value**2)

    jk.SAM(jk.SGD(0.125)).minimize(f, [v])
    assert float(calls) == 1.0


def test_in_fit():
    keras, interop = pytest.importorskip("keras"), pytest.importorskip("jaxopt_keras.interop.keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(interop.SAM(jk.SGD(0.125)), "mse")
    with pytest.raises(ValueError, match="fit"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)


def test_without_the_function_nothing_changes():
    one = kernel()
    state = one.init(PARAMS)
    with pytest.raises(
        ValueError, match="This optimizer needs the loss function, for a second gradient. Received: none"
    ):
        one.step(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="needs the loss function"):
        one.update(PARAMS, state, PARAMS, value=3.0)
    near(run(one, PARAMS, [loss])[0], expected(PARAMS, [loss]))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: modifiers.SAM(modifiers.ASAM(rules.Adam())), ValueError, "takes no second gradient"),
        (lambda: modifiers.SAM(rules.Adam(), rho=-1.0), ValueError, "`rho` must be in"),
        (lambda: kernel(sparse="lazy"), ValueError, "takes a second gradient, of whole arrays"),
        (lambda: kernel().minimize(3, PARAMS, kernel().init(PARAMS)), TypeError, "`loss` must be a function"),
        (lambda: run(kernel(), PARAMS, [loss], wrong=1), TypeError, "`step` takes"),
        (lambda: stepped(value_fn=3), TypeError, "`value_fn` must be a function"),
        (lambda: stepped(value_fn=lambda p: p["w"]), TypeError, "must return one number"),
        (lambda: stepped(value_fn=lambda p: (loss(p), 1)), TypeError, "must return one number"),
        (lambda: stepped(value_fn=lambda p: 3), TypeError, "must return one number"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def stepped(**extra):
    one = kernel()
    return one.step(PARAMS, one.init(PARAMS), PARAMS, donate=False, **extra)


class Needy(Looking, jk.Rule):
    """A rule whose update needs the second gradient too."""

    def looks(self, at):
        return at.t % 2 == 1

    def update(self, g, p, s, at):
        return at.second - g, s


def test_a_rule_that_looks_now_and_then():
    one, g = Kernel(Needy()), jax.tree.map(jnp.ones_like, PARAMS)
    params, state = one.step(PARAMS, one.init(PARAMS), g, value_fn=loss, donate=False)
    near(params, jax.tree.map(lambda p, h: p + h - 1, PARAMS, jax.grad(loss)(PARAMS)))
    after, _ = one.step(params, state, g, value_fn=loss, donate=False)
    near(after, jax.tree.map(lambda p: p - 1, params))
    with pytest.raises(ValueError, match="Needy cannot accumulate gradients"):
        Kernel(Needy(), Options(gradient_accumulation_steps=2))
    v, optimizer = jk.Variable(PARAMS["w"]), jk.Optimizer.from_rule(Needy())
    for _ in range(2):
        optimizer.minimize(lambda: jnp.sum(v.value**2), [v])
    np.testing.assert_allclose(v.value, -PARAMS["w"], rtol=1e-6)


def test_modifiers_around_it_see_one_gradient():
    inside = Kernel(modifiers.SAM(modifiers.Centralized(rules.SGD(0.125))))
    outside = Kernel(modifiers.Centralized(modifiers.SAM(rules.SGD(0.125))))
    assert_close(run(inside, PARAMS, [loss] * 2)[0], run(outside, PARAMS, [loss] * 2)[0], 2)
    exact = lambda inner: modifiers.Mars(
        inner, clip=False, exact=True
    )  # with a slot, of another layer than the modifier's
    alone, around = Kernel(exact(rules.SGD(0.05))), Kernel(modifiers.Lookahead(exact(rules.SGD(0.05)), la_steps=9))
    assert_close(run(around, PARAMS, [loss] * 3)[0], run(alone, PARAMS, [loss] * 3)[0], 3)
    joint = Kernel(modifiers.SAM(rules.Prodigy(1.0, d0=0.01)))  # sums of the second gradient
    second = lambda p: jax.grad(loss)(jax.tree.map(lambda p, g: p + 0.05 * g, p, normalized(jax.grad(loss)(p))))
    plain, params = Kernel(rules.Prodigy(1.0, d0=0.01)), PARAMS
    state = plain.init(params)
    for _ in range(3):
        params, state = plain.step(params, state, second(params), donate=False)
    near(run(joint, PARAMS, [loss] * 3)[0], params)


def normalized(g):
    return jax.tree.map(lambda x: x / optax.tree.norm(g), g)
