"""Finite gradients whose squares overflow: every rule steps as it does in float64, and goes on learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.language.numerics import norm, rms, squarable
from jaxopt_keras.optimizers import FUNCTIONS, RULES

KERNELS = [(name, v) for name, rule in zip(FUNCTIONS, RULES.values(), strict=True) for v in rule.variants]
# Roots of eigenvalues of 1e38 beside those of 1: rounding decides the smaller ones, in float64 too.
UNDECIDED = ("shampoo",)
HUGE = [1e20, -3e25, 1e37]
HUGEST = [*HUGE, 3e38]  # 1 / 3e38 is subnormal, and flushed to zero; the norm of two such elements is infinite


def trained(kernel, params, grads):
    state = kernel.init(params)
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return np.asarray(params, np.float64), state


@pytest.mark.parametrize("engine, huge", [*(("auto", x) for x in HUGE), ("xla", HUGE[1])])
@pytest.mark.parametrize("function, variant", KERNELS)
def test_steps_are_those_of_float64(function, variant, huge, engine, x64):
    kernel = FUNCTIONS[function](variant=variant, engine=engine)
    usual = np.array([[0.5, 0.25, -0.75], [0.25, -0.5, 0.5]])
    spike = usual.copy()
    spike[0, 0] = huge
    expected, _ = trained(kernel, jnp.ones((2, 3)), [usual, spike, usual, usual])
    narrow = [jnp.asarray(g, jnp.float32) for g in (usual, spike, usual, usual)]
    found, state = trained(kernel, jnp.ones((2, 3), jnp.float32), narrow)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    if function not in UNDECIDED:
        rounding = 4 * 2**-24  # of four steps of a parameter near 1
        np.testing.assert_allclose(found - 1, expected - 1, rtol=2e-2, atol=rounding)


@pytest.mark.parametrize("function, variant", KERNELS)
def test_many_huge_elements_leave_a_finite_state(function, variant):
    kernel, g = FUNCTIONS[function](variant=variant), jnp.ones((8, 8))
    _, state = trained(kernel, jnp.ones((8, 8)), [g, g.at[2:].set(1e19), g])
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("state_dtype", ["int8", "int4", "float8", "bfloat16"])
def test_quantized_slots_stay_finite(state_dtype, huge):
    kernel, g = jk.adamw(state_dtype=state_dtype), jnp.full(8192, 0.5)
    params, state = trained(kernel, jnp.ones(8192), [g, g.at[3].set(huge), g, g])
    assert np.all(np.isfinite(params)) and np.all(np.abs(params - 1) < 0.1)
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(state))


CLIPS = {
    "clipnorm": lambda g: g / np.linalg.norm(g),
    "global_clipnorm": lambda g: g / np.linalg.norm(g),
    "clipvalue": lambda g: np.clip(g, -1, 1),
}


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: jk.loss_scaled(k, 1.0), lambda k: jk.partition({"w": k})])
@pytest.mark.parametrize("huge", HUGEST)
@pytest.mark.parametrize("clip", CLIPS)
def test_clips_of_huge_gradients(clip, huge, wrap):
    g = np.array([huge, -huge, 1.0], np.float32)
    kernel, params = wrap(jk.sgd(1.0, skip_nonfinite=True, **{clip: 1.0})), {"w": jnp.zeros(3)}
    new, state = kernel.step(params, kernel.init(params), {"w": jnp.asarray(g)})
    np.testing.assert_allclose(new["w"], -CLIPS[clip](g.astype(np.float64)), rtol=1e-6, atol=1e-37)
    assert int(state.scalars["skipped"]) == 0


@pytest.mark.parametrize("clip", CLIPS)
def test_a_limit_of_zero_is_no_limit(clip):
    kernel = jk.sgd(1.0, inject_hyperparams=True, **{clip: 1.0})
    for g in (jnp.array([3.0, 4.0]), jnp.zeros(2)):
        state = kernel.replaced(kernel.init(jnp.zeros(2)), **{clip: 0.0})
        assert np.array_equal(kernel.step(jnp.zeros(2), state, g)[0], -g)


ONE_ELEMENT = [(), (1,), (1, 1)]


@pytest.mark.parametrize("engine", ["auto", "xla"])
@pytest.mark.parametrize("huge", HUGEST)
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_clips_of_single_elements(clip, huge, engine):
    """With one element there is no sum between the squares and the root, so that compilers simplify them."""
    kernel = jk.sgd(1.0, engine=engine, **{clip: 1.0})
    params = {"w": [jnp.zeros(shape) for shape in ONE_ELEMENT], "b": jnp.zeros(2)}
    grads = {"w": [jnp.full(shape, huge) for shape in ONE_ELEMENT], "b": jnp.ones(2)}
    size = np.sign(huge) * (1.0 if clip == "clipnorm" else 3**-0.5)
    for step in (functools.partial(kernel.step, donate=False), jax.jit(kernel.step)):
        new, _ = step(params, kernel.init(params), grads)
        assert [w.shape for w in new["w"]] == ONE_ELEMENT
        np.testing.assert_allclose([float(w.ravel()[0]) for w in new["w"]], -size, rtol=1e-6)
        expected = 0.5**0.5 if clip == "clipnorm" else 3**-0.5 / abs(huge)
        np.testing.assert_allclose(new["b"], -expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("engine", ["auto", "xla"])
@pytest.mark.parametrize("shape", ONE_ELEMENT)
def test_lamb_of_single_elements(shape, engine):
    kernel, params = jk.lamb(0.1, engine=engine), jnp.full(shape, 1e20)
    new, _ = jax.jit(kernel.step)(params, kernel.init(params), jnp.full(shape, 1e20))
    np.testing.assert_allclose(new, np.full(shape, 0.9e20), rtol=1e-6)  # |p| = 1e20 is the length of the step


@pytest.mark.parametrize("huge", HUGEST)
@pytest.mark.parametrize("shape", [*ONE_ELEMENT, (1, 2)])
def test_norms_in_transformations(shape, huge):
    x = jnp.full(shape, huge / 2)
    expected = np.linalg.norm(np.asarray(x, np.float64))
    for f in (norm, jax.jit(norm), jax.jit(jax.checkpoint(norm))):
        np.testing.assert_allclose(f(x), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(f)(jnp.stack([x])), [expected], rtol=1e-6)
        np.testing.assert_allclose(jax.grad(f)(x), np.asarray(x, np.float64) / expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(f, (x,), (jnp.ones(shape),))[1], np.sign(huge) * x.size**0.5, rtol=1e-6)


@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "shard_map"])
def test_one_element_on_each_device(mapped):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    x = jax.device_put(jnp.full(4, 1e20), NamedSharding(mesh, PartitionSpec("data")))
    if mapped:
        each = jax.shard_map(lambda x: norm(x)[None], mesh=mesh, in_specs=(x.sharding.spec,), out_specs=x.sharding.spec)
        np.testing.assert_allclose(jax.jit(each)(x), np.full(4, 1e20), rtol=1e-6)
    else:
        np.testing.assert_allclose(jax.jit(norm)(x), 2e20, rtol=1e-6)


def test_joint_norms_of_several_dtypes(x64):
    tree = [jnp.float32(3e20), jnp.full((1,), 4e20, jnp.float32), jnp.float64(1.0), jnp.complex64(12e20)]
    np.testing.assert_allclose(jax.jit(lambda *x: norm(*x))(*tree), 13e20, rtol=1e-6)
    np.testing.assert_allclose(jk.global_norm(tree), 13e20, rtol=1e-6)


@pytest.mark.parametrize("huge", HUGE)
def test_measures_of_huge_gradients(huge):
    kernel, params = jk.sgd(1.0, clipnorm=1.0), {"w": jnp.zeros(3), "b": jnp.zeros(())}
    grads = {"w": jnp.full(3, huge), "b": jnp.asarray(huge)}
    _, _, found = jk.history.measured_step(kernel, params, kernel.init(params), grads, groups={"b": "b"})
    np.testing.assert_allclose(found["gradient_norm"], 2 * abs(huge), rtol=1e-6)
    np.testing.assert_allclose(found["gradient_norm/b"], abs(huge), rtol=1e-6)
    np.testing.assert_allclose(found["update_norm"], 2**0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
def test_norms_do_not_overflow(dtype, x64):
    greatest = float(np.finfo(dtype).max) / 64
    for x in ([3.0, 4.0], [3e-3, 4e-3], [greatest * 0.6, greatest * 0.8], [1.0] * 7 + [greatest], []):
        x = np.array(x, dtype) * (1j if "complex" in dtype else 1)
        expected = np.sqrt(np.sum(np.abs(x.astype(np.clongdouble)) ** 2))
        np.testing.assert_allclose(norm(jnp.asarray(x)), float(expected), rtol=1e-6)
        np.testing.assert_allclose(rms(jnp.asarray(x)), float(expected) / max(x.size, 1) ** 0.5, rtol=1e-6)
    for bad in (np.inf, np.nan):
        assert not np.isfinite(norm(jnp.array([1.0, bad], dtype)))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_squarable_hides_nothing(dtype):
    x = jnp.array([1.0, -2.0, 0.0, 1e19, 1e38, -1e38, np.inf, -np.inf, np.nan], dtype)
    limited = np.asarray(squarable(x))
    assert np.array_equal(limited[:4], x[:4]) and np.all(np.isfinite(np.abs(limited[:6]) ** 2))
    assert np.array_equal(limited[6:], x[6:], equal_nan=True)


def test_the_norm_has_a_finite_derivative():
    assert np.allclose(jax.grad(norm)(jnp.array([3.0, 4.0])), [0.6, 0.8])
