"""Guards: what is skipped, what is not, and what they cost when they are off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.stages.guard import SKIPPED, USUAL
from tests.laws.cases import assert_same_bits, gradients, parameters
from tests.stateful.facade import two


def test_spikes_are_skipped():
    kernel, params = jk.sgd(0.1, skip_spikes=3.0), jnp.zeros(2)
    state = kernel.init(params)
    for size in (1.0, 1.1, 0.9, 1.0):
        params, state = kernel.step(params, state, jnp.array([size, 0.0]))
    assert state.scalars[SKIPPED] == 0
    np.testing.assert_allclose(state.scalars[USUAL], 1.0, rtol=1e-6)
    before = np.array(params)
    for bad, count in ((100.0, 1), (np.nan, 2), (np.inf, 3)):
        usual = float(state.scalars[USUAL])
        params, state = kernel.step(params, state, jnp.array([bad, 0.0]))
        assert state.scalars[SKIPPED] == count and state.count == 4
        assert np.isfinite(state.scalars[USUAL]) and state.scalars[USUAL] <= 3 * usual
        np.testing.assert_array_equal(params, before)
    params, state = kernel.step(params, state, jnp.array([1.0, 0.0]))
    assert state.count == 5


def test_a_lasting_change_of_scale_is_taken_in_the_end():
    kernel, params = jk.sgd(0.0, skip_spikes=2.0), jnp.zeros(())
    state = kernel.init(params)
    for size in [1.0] * 150 + [1000.0] * 1500:
        params, state = kernel.step(params, state, jnp.asarray(size))
    assert 10 < state.scalars[SKIPPED] < 1000


def test_the_first_gradients_set_the_scale():
    kernel, params = jk.sgd(0.1, skip_spikes=2.0), jnp.zeros(())
    params, state = kernel.step(params, kernel.init(params), jnp.asarray(0.0))
    params, state = kernel.step(params, state, jnp.asarray(1e6))
    assert state.scalars[SKIPPED] == 0 and state.scalars[USUAL] == 1e6


def test_nothing_is_kept_or_compiled_when_off():
    params, grads = parameters(), gradients(1)[0]
    kernel = jk.adam()
    assert SKIPPED not in kernel.init(params).scalars
    assert "cond" not in str(jax.make_jaxpr(kernel.step)(params, kernel.init(params), grads))
    assert "is_finite" not in str(jax.make_jaxpr(kernel.step)(params, kernel.init(params), grads))


def test_large_gradients_are_finite():
    """A joint norm would overflow."""
    kernel, params = jk.lion(0.1, skip_nonfinite=True), jnp.zeros(1000)
    params, state = kernel.step(params, kernel.init(params), jnp.full(1000, 3e38))
    assert state.scalars[SKIPPED] == 0 and state.count == 1


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: jk.partition({"^": k})], ids=["plain", "partition"])
def test_one_decision_for_all_devices(wrap):
    """One device's NaN stops all of them, also those whose own gradients are good."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
    kernel, params = wrap(jk.adam(0.1, axis_name="batch", skip_nonfinite=True)), {"w": jnp.ones(3)}
    spec = PartitionSpec("batch")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
    def step(params, grads):
        params, state = kernel.step(params, kernel.init(params), {"w": grads[0]})
        return params["w"][None], state.scalars[SKIPPED][None]

    w, skipped = step(params, jnp.ones((4, 3)).at[2, 1].set(jnp.nan))
    assert skipped.tolist() == [1] * 4
    np.testing.assert_array_equal(w, np.ones((4, 3), np.float32))
    w, skipped = step(params, jnp.ones((4, 3)))
    assert skipped.tolist() == [0] * 4 and (w < 1).all()


def test_lazy_rows():
    kernel, params = jk.sgd(0.5, sparse="lazy", skip_nonfinite=True), {"w": jnp.ones((4, 2))}
    state = kernel.init(params)
    for bad, moved in ((jnp.nan, False), (1.0, True)):
        grads = {"w": jk.IndexedSlices(jnp.array([[1.0, bad]]), jnp.array([2]), (4, 2))}
        params, state = kernel.step(params, state, grads)
        assert bool((params["w"][2] < 1).all()) is moved
    assert state.scalars[SKIPPED] == 1


def test_the_stateful_face():
    optimizer, variables = jk.Adam(skip_nonfinite=True), two()
    optimizer.build(variables)
    bad = [jnp.full((2, 3), jnp.nan), jnp.ones(3)]
    with unchanged_but_for_the_counter(optimizer, variables):
        optimizer.apply_gradients(zip(bad, variables, strict=True))
    assert int(optimizer.skipped) == 1 and int(optimizer.iterations) == 0
    assert optimizer.variables[-1].name == "skipped"
    optimizer.skip_nonfinite = False
    assert optimizer.skipped == 0
    optimizer.skip_spikes = 5.0
    assert optimizer.get_config()["skip_spikes"] == 5.0 and jk.Adam.from_config(optimizer.get_config()).skip_spikes == 5
    optimizer.apply_gradients(zip([jnp.ones((2, 3)), jnp.ones(3)], variables, strict=True))
    assert int(optimizer.iterations) == 1 and int(optimizer.skipped) == 0


def unchanged_but_for_the_counter(optimizer, variables):
    class Same:
        def __enter__(self):
            self.before = [np.array(v) for v in [*variables, *optimizer.variables[:-1]]]

        def __exit__(self, *_):
            after = [np.array(v) for v in [*variables, *optimizer.variables[:-1]]]
            assert_same_bits(after, self.before)

    return Same()


@pytest.mark.parametrize("value", [1.0, 0.5, np.inf, np.nan])
def test_a_spike_is_greater_than_usual(value):
    with pytest.raises(ValueError, match="skip_spikes"):
        jk.adam(skip_spikes=value)


def test_another_limit_compiles_nothing():
    assert jk.adam(skip_spikes=3.0).skeleton == jk.adam(skip_spikes=4.0).skeleton
    assert jk.adam(skip_spikes=3.0) != jk.adam(skip_spikes=4.0)


@pytest.mark.parametrize("bad", [complex(1, np.inf), complex(np.nan, 0), complex(-np.inf, 1)])
def test_both_parts_of_complex_gradients_are_looked_at(bad, jax_defaults):
    kernel, params = jk.loss_scaled(jk.sgd(0.5), 1.0), jnp.ones(3, jnp.complex64)
    params, state = kernel.step(params, kernel.init(params), jnp.array([1, bad, 1], jnp.complex64))
    assert state.scalars[SKIPPED] == 1 and (params == 1).all()
