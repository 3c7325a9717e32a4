"""The pure face in other people's loops, and what its own options promise."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras import schedules

PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3) / 6, "bias": jnp.ones(3)}}
GRADS = jax.tree.map(lambda p: p * 0.5 - 0.1, PARAMS)


def steps(kernel, params=PARAMS, grads=GRADS, n=5):
    state = kernel.init(params)
    for _ in range(n):
        params, state = kernel.step(params, state, grads, donate=False)
    return params, state


def close(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **({"rtol": 1e-6, "atol": 1e-7} | tolerance)), a, b)


@contextlib.contextmanager
def optax_allowed():
    """optax's own arithmetic needs what the tests forbid ours."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_every_rule_has_its_function():
    assert list(jk.optimizers.FUNCTIONS) == [
        rule.__module__.rpartition(".")[2] for rule in jk.optimizers.RULES.values()
    ]
    assert all(getattr(jk, name) is function for name, function in jk.optimizers.FUNCTIONS.items())
    assert {"sgd", "adamw", "lion", "schedule_free_adamw", "ademamix"} <= set(jk.optimizers.FUNCTIONS)


def test_a_kernel_is_an_optax_transformation():
    tx = optax.chain(optax.clip_by_global_norm(0.1), jk.adam(0.01, variant="optax"), optax.scale(0.5))
    ref = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01, eps=1e-7), optax.scale(0.5))
    p = q = PARAMS
    s, r = tx.init(p), ref.init(q)
    with optax_allowed():
        for _ in range(5):
            u, s = tx.update(GRADS, s, p)
            v, r = ref.update(GRADS, r, q)
            p, q = optax.apply_updates(p, u), optax.apply_updates(q, v)
    close(p, q, atol=1e-6)


def test_unknown_keyword_arguments_are_ignored():
    kernel = jk.sgd(0.1)
    updates, _ = kernel.update(GRADS, kernel.init(PARAMS), PARAMS, value=jnp.float32(1), loss_fn=len)
    close(updates, jax.tree.map(lambda g: -0.1 * g, GRADS))


def test_params_may_be_left_out_where_nobody_reads_them():
    for kernel in (jk.sgd(0.1, momentum=0.9), jk.adam(), jk.rmsprop(), jk.lion()):
        with_params, _ = kernel.update(GRADS, kernel.init(PARAMS), PARAMS)
        without, _ = kernel.update(GRADS, kernel.init(PARAMS))
        close(with_params, without, rtol=0, atol=0)
    for kernel in (jk.adamw(), jk.adam(use_ema=True), jk.sgd(constraints={"": jnp.abs}), jk.lamb(), jk.ftrl()):
        with pytest.raises(ValueError, match="params"):
            kernel.update(GRADS, kernel.init(PARAMS))


def test_from_optax_is_optax():
    tx = optax.adamw(0.01, weight_decay=0.1)
    kernel = jk.Kernel.from_optax(tx)
    with optax_allowed():
        params, state = steps(kernel)
    q, r = PARAMS, tx.init(PARAMS)
    with optax_allowed():
        for _ in range(5):
            v, r = tx.update(GRADS, r, q)
            q = optax.apply_updates(q, v)
    close(params, q)
    assert int(state.count) == 5


def test_schedules_of_a_transformation_count_its_updates():
    tx = optax.sgd(optax.exponential_decay(1.0, 1, 0.5))
    kernel, p = jk.Kernel.from_optax(tx, gradient_accumulation_steps=2, schedule_counts="updates"), jnp.zeros(())
    state = kernel.init(p)
    for _ in range(4):
        p, state = kernel.step(p, state, jnp.ones(()))
    assert float(p) == -1.5
    for make in (jk.Kernel.from_optax, jk.Optimizer.from_optax):
        with pytest.raises(ValueError, match="schedules of an optax transformation count its updates.*calls"):
            make(tx, gradient_accumulation_steps=2, schedule_counts="calls")
    optimizer, w = jk.Optimizer.from_optax(tx, gradient_accumulation_steps=2), jk.Variable(0.0)
    with pytest.raises(ValueError, match="count its updates"):
        optimizer.schedule_counts = "calls"
        optimizer.apply_gradients([(1.0, w)])
    assert jk.Kernel.from_optax(tx, schedule_counts="calls")  # without a window both are equal


def test_from_optax_leaves_what_has_no_gradient():
    kernel = jk.Kernel.from_optax(optax.sgd(0.5, momentum=0.9))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    params, state = kernel.step(params, kernel.init(params), {"a": jnp.ones(2), "b": jnp.ones(2)})
    moved = params["b"].tolist()
    params, _ = kernel.step(params, state, {"a": jnp.ones(2), "b": None})
    assert params["b"].tolist() == moved != params["a"].tolist()


def test_lamb_without_a_step_stays():
    kernel, params = jk.lamb(0.5), {"w": jnp.ones(3)}
    params, _ = kernel.step(params, kernel.init(params), {"w": jnp.zeros(3)})
    assert params["w"].tolist() == [1, 1, 1]


def test_from_optax_takes_the_options_too():
    clipped = jk.Kernel.from_optax(optax.sgd(0.1), clipvalue=0.05, gradient_accumulation_steps=2)
    params, _ = steps(clipped, n=4)
    close(params, steps(jk.sgd(0.1, clipvalue=0.05), n=2)[0])
    with pytest.raises(ValueError, match="`weight_decay` needs a learning rate"):
        steps(jk.Kernel.from_optax(optax.sgd(0.1), weight_decay=0.1))
    with pytest.raises(TypeError, match="`tx` must have"):
        jk.Kernel.from_optax(3)


@pytest.mark.parametrize("schedule", [optax.cosine_decay_schedule(0.1, 10), schedules.CosineDecay(0.1, 10)])
def test_a_schedule_sees_the_updates_made(schedule):
    with optax_allowed():
        params, _ = steps(jk.sgd(schedule), n=3)
    total = sum(float(schedule(i)) for i in range(3))
    close(params, jax.tree.map(lambda p, g: p - total * g, PARAMS, GRADS))


def test_a_function_without_arguments_is_no_schedule_here():
    with pytest.raises(TypeError, match="`learning_rate` must be a number or a function of the step"):
        jk.sgd(lambda: 0.1)


@pytest.mark.parametrize("excluded", [("bias",), "bias", lambda path, p: p.ndim < 2, ["kern3l", "^dense/bias$"]])
def test_weight_decay_with_exclusions(excluded):
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    kernel = jk.sgd(0.5, weight_decay=0.1, exclude_from_weight_decay=excluded)
    misspelt = pytest.warns(UserWarning, match="'kern3l' matches no parameter")
    with misspelt if isinstance(excluded, list) else contextlib.nullcontext():
        params, _ = steps(kernel, grads=zero, n=1)
    close(params["dense"]["bias"], PARAMS["dense"]["bias"], rtol=0)
    close(params["dense"]["kernel"], PARAMS["dense"]["kernel"] * 0.95)


def test_constraints_come_last():
    kernel = jk.sgd(1.0, constraints={"bias": lambda p: jnp.clip(p, 0.9, 1.0), "nothing": jnp.negative})
    with pytest.warns(UserWarning, match="'nothing' matches no parameter"):
        params, state = steps(kernel, n=1)
    close(params["dense"]["bias"], jnp.full(3, 0.9))
    with pytest.warns(UserWarning, match="'nothing' matches no parameter"):
        state = kernel.init(PARAMS)
    updates, _ = kernel.update(GRADS, state, PARAMS)
    close(jax.tree.map(jnp.add, PARAMS, updates), params)


def test_the_parameters_to_evaluate():
    kernel = jk.sgd(0.1, use_ema=True, ema_momentum=0.5)
    params, state = steps(kernel, n=2)
    first = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, GRADS)
    close(kernel.averaged(params, state), jax.tree.map(lambda a, p: (a + p) / 2, first, params))
    kernel = jk.schedule_free_adamw(0.1)
    params, state = steps(kernel, n=3)
    z = state.slots["momentum"]["dense"]["bias"]
    x = kernel.averaged(params, state)["dense"]["bias"]
    close(0.1 * z + 0.9 * x, params["dense"]["bias"])
    assert not np.allclose(x, params["dense"]["bias"])
    params, state = steps(jk.adam())
    close(jk.adam().averaged(params, state), params, rtol=0)


def test_hyperparameters_are_replaced_in_the_kernel_or_in_the_state():
    numbers = {"learning_rate": 0.5, "beta_1": 0.8, "weight_decay": 0.0}
    expected = steps(jk.adam(**numbers), n=1)
    kernel = jk.adam(0.1, weight_decay=0.2)
    assert kernel.replace(**numbers) == jk.adam(**numbers)
    close(steps(kernel.replace(**numbers), n=1), expected, rtol=0, atol=0)
    injecting = jk.adam(0.1, weight_decay=0.2, inject_hyperparams=True)
    state = injecting.replaced(injecting.init(PARAMS), **numbers)
    params, _ = injecting.step(PARAMS, state, GRADS, donate=False)
    close(params, expected[0], rtol=0, atol=0)
    with pytest.raises(
        ValueError, match="`clipnorm` is not a run-time hyperparameter of this.*Received: clipnorm=1.0. There are"
    ):
        kernel.replace(clipnorm=1.0)
    with pytest.raises(ValueError, match="`clipnorm` is not in the state, which has .* Received: clipnorm=1.0"):
        injecting.replaced(state, clipnorm=1.0)
    with pytest.raises(ValueError, match=r"`learning_rate` is not in the state, which has \[\].*kernel.replace"):
        kernel.replaced(kernel.init(PARAMS), learning_rate=0.5)
    for replace in (kernel.replace, functools.partial(injecting.replaced, state)):
        with pytest.raises(ValueError, match="`beta_1` must be in"):
            replace(beta_1=2.0)


def test_the_docstring_and_signature_tell_the_arguments():
    assert "    beta_2: the decay of `velocity`, the average of squared gradients. " in (jk.adam.__doc__ or "")
    assert "A number in [0, 1). Default: 0.999.\n" in (jk.adam.__doc__ or "")
    assert list(__import__("inspect").signature(jk.adamw).parameters)[:3] == ["learning_rate", "weight_decay", "beta_1"]


def test_structures_that_do_not_fit():
    kernel = jk.adam()
    state = kernel.init(PARAMS)
    with pytest.raises(ValueError, match="`grads` must have the structure of the parameters"):
        kernel.step(PARAMS, state, {"dense": {"kernel": GRADS["dense"]["kernel"]}}, donate=False)
    with pytest.raises(ValueError, match=r"`state.slots\['momentum'\]` must have the structure"):
        kernel.step({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)}, donate=False)
    with pytest.raises(ValueError, match=r"`dense/bias` must have the parameter's shape \(3,\). Received: \(2,\)"):
        kernel.step(PARAMS, state, {"dense": GRADS["dense"] | {"bias": jnp.ones(2)}}, donate=False)
    with pytest.raises(TypeError, match="`dense/bias` must be real"):
        kernel.step(PARAMS, state, {"dense": GRADS["dense"] | {"bias": jnp.ones(3, complex)}}, donate=False)
    with pytest.raises(TypeError, match="Received: `i` of dtype int32"):
        kernel.init({"i": jnp.arange(3)})
    close(kernel.step(PARAMS, state, GRADS, donate=False)[0], steps(kernel, n=1)[0], rtol=0)
