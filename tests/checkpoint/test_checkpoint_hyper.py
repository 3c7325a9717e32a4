"""Hyperparameters in checkpoints: those of kernels that keep them in their state."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

PARAMS = {"dense": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.ones(2)}}
ADAMW = jk.adamw(0.01)
GROUPS = jk.partition({"bias": jk.adam(0.1)}, default=ADAMW)


def trained(kernel):
    params, state = PARAMS, kernel.init(PARAMS)
    for _ in range(3):
        params, state = kernel.step(params, state, PARAMS, donate=False)
    return params, state


def test_hyperparameters_are_the_kernels_own_unless_asked_for():
    injecting = jk.adamw(0.01, inject_hyperparams=True)
    params, state = trained(injecting)
    saved = checkpoint.to_dict(injecting.replaced(state, learning_rate=0.5, beta_2=0.9))
    kernel = jk.adamw(0.25, inject_hyperparams=True)
    with pytest.warns(UserWarning, match=r"not restored: beta_2 0.9 \(here 0.999\), learning_rate 0.5 \(here 0.25\)"):
        own = checkpoint.from_dict(kernel, params, saved)
    assert float(own.hyperparams["learning_rate"]) == 0.25
    there = checkpoint.from_dict(kernel, params, saved, hyper=True).hyperparams
    assert float(there["learning_rate"]) == 0.5 and float(there["beta_2"].complement) == np.float32(0.1)
    few = checkpoint.from_dict(jk.adamw(0.25, inject_hyperparams="learning_rate"), params, saved, hyper=True)
    assert few.hyperparams == {"learning_rate": 0.5}


def test_hyperparameters_of_groups():
    """Also out of what was saved without groups."""
    make = lambda rate: jk.partition(
        {"bias": jk.sgd(rate, momentum=0.9, inject_hyperparams="learning_rate")}, default=jk.adamw(0.01)
    )
    params, state = trained(make(0.25))
    for saved in (state, trained(jk.sgd(0.25, momentum=0.9, inject_hyperparams=True))[1]):
        with pytest.warns(UserWarning) if saved is not state else contextlib.nullcontext():
            there = checkpoint.from_dict(make(0.5), params, checkpoint.to_dict(saved), hyper=True)
        assert there.hyperparams == {"bias": {"learning_rate": 0.25}}


def test_hyperparameters_need_a_place_in_the_state(tmp_path):
    params, state = trained(jk.adamw(0.01, inject_hyperparams=True))
    checkpoint.save(tmp_path / "a.safetensors", state)
    for kernel in (ADAMW, GROUPS, jk.loss_scaled(ADAMW)):
        for restore in (
            lambda kernel: checkpoint.from_dict(kernel, params, checkpoint.to_dict(state), hyper=True),
            lambda kernel: checkpoint.load(tmp_path / "a.safetensors", kernel, params, hyper=True),
        ):
            with pytest.raises(ValueError, match="without `inject_hyperparams`. Make it with .*`kernel.replace"):
                restore(kernel)
    assert checkpoint.from_dict(ADAMW, params, checkpoint.to_dict(state)).hyperparams == {}
    _, without = trained(ADAMW)
    injecting = jk.adamw(0.25, inject_hyperparams=("learning_rate", "beta_2"))
    with pytest.warns(
        UserWarning,
        match="these hyperparameters were not saved and keep their values: `hyper/beta_2`, `hyper/learning_r",
    ):
        there = checkpoint.from_dict(injecting, params, checkpoint.to_dict(without), hyper=True)
    assert float(there.hyperparams["learning_rate"]) == 0.25


def test_injected_momenta_make_the_product_of_momenta():
    """Of the saved numbers where those are taken."""
    _, state = trained(ADAMW)
    kernel = jk.nadam(0.01, beta_1=0.5, inject_hyperparams=True)
    _, other = trained(kernel)
    with pytest.warns(UserWarning, match="keep their values"):
        there = checkpoint.from_dict(kernel, PARAMS, checkpoint.to_dict(state), hyper=True)
    np.testing.assert_allclose(there.scalars["u_product"], other.scalars["u_product"], rtol=1e-6)
