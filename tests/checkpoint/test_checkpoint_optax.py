"""Train in the one, go on in the other: the same trajectory, from optax and to optax."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.checkpoint.optax import FIELDS, TABLE
from jaxopt_keras.rules.muon import AdamPart

optax = pytest.importorskip("optax")
pytestmark = pytest.mark.usefixtures("jax_defaults")

RNG = np.random.default_rng(0)
SHAPES = {"dense": {"kernel": (6, 4), "bias": (4,)}}


def drawn(size=1.0):
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(size * RNG.normal(size=s), jnp.float32), SHAPES, is_leaf=is_shape)


PARAMS, GRADS = drawn(), [drawn(0.3) for _ in range(8)]
HALF = 3  # steps in the first library: in the middle of a window of four


def falling(count):
    return 0.1 / (1 + jnp.asarray(count, jnp.float32))


# Decays that are exact in binary: of 0.999 optax knows the complement to 1e-5 only, which is no matter of a conversion.
B, OB = {"beta_1": 0.875, "beta_2": 1 - 2**-7}, {"b1": 0.875, "b2": 1 - 2**-7}
O = {"variant": "optax"}  # noqa: E741  # O as in optax, in a long table
E = {"epsilon": 1e-8, "variant": "optax"}
CASES = {
    "adam": (jk.adam(0.1, **B, **E), optax.adam(0.1, **OB)),
    "adamw": (jk.adamw(0.1, 0.01, **B, **E), optax.adamw(0.1, weight_decay=0.01, **OB)),
    "amsgrad": (jk.adam(0.1, amsgrad=True, **B, **E), optax.amsgrad(0.1, **OB)),
    "nadam": (jk.nadam(0.1, **B, **E), optax.nadam(0.1, **OB)),
    "adamax": (jk.adamax(0.1, **B, **E), optax.adamax(0.1, **OB)),
    "lamb": (jk.lamb(0.1, epsilon=1e-6, **B, **O), optax.lamb(0.1, **OB)),
    "lion": (jk.lion(0.1, **O), optax.lion(0.1, weight_decay=0.0)),
    "sgd": (jk.sgd(0.1), optax.sgd(0.1)),
    "momentum, keras": (jk.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "momentum, optax": (jk.sgd(falling, momentum=0.9, **O), optax.sgd(falling, momentum=0.9)),
    "nesterov": (jk.sgd(0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "rmsprop": (jk.rmsprop(0.1, epsilon=1e-8, **O), optax.rmsprop(0.1)),
    "rmsprop with all": (
        jk.rmsprop(0.1, epsilon=1e-8, momentum=0.5, centered=True, **O), optax.rmsprop(0.1, momentum=0.5, centered=True)
    ),
    "adagrad": (jk.adagrad(0.1, **O), optax.adagrad(0.1)),
    "adadelta": (jk.adadelta(0.1, rho=0.9, epsilon=1e-6, **O), optax.adadelta(0.1)),
    "adafactor": (
        jk.adafactor(0.1, epsilon_1=1e-30, min_dim_size_to_factor=2, **O),
        optax.adafactor(0.1, min_dim_size_to_factor=2, decay_rate=0.8),
    ),
    "chain": (
        jk.adamw(falling, 0.01, global_clipnorm=0.5, **B, **E),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(falling, weight_decay=0.01, **OB)),
    ),
    "injected": (jk.adam(0.1, **B, **E), optax.inject_hyperparams(optax.adam)(0.1, **OB)),
    "apply_if_finite": (
        jk.adam(0.1, skip_nonfinite=True, **B, **E), optax.apply_if_finite(optax.adam(0.1, **OB), 9),
    ),
    "window": (
        jk.adam(0.1, gradient_accumulation_steps=4, **B, **E), optax.MultiSteps(optax.adam(0.1, **OB), 4)
    ),
    "groups": (
        jk.partition({"kernel": jk.adam(0.1, **B, **E)}, default=jk.sgd(0.1, momentum=0.9)),
        optax.partition(
            {"a": optax.adam(0.1, **OB), "s": optax.sgd(0.1, momentum=0.9)},
            {"dense": {"kernel": "a", "bias": "s"}},
        ),
    ),
    "frozen": (
        jk.partition({"bias": jk.frozen()}, default=jk.adam(0.1, **B, **E)),
        optax.partition(
            {"a": optax.adam(0.1, **OB), "z": optax.set_to_zero()},
            {"dense": {"kernel": "a", "bias": "z"}},
        ),
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("kernel, tx", CASES.values(), ids=CASES)


def ours(kernel, params, state, grads):
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return params, state


def theirs(tx, params, state, grads):
    step = jax.jit(tx.update)
    for g in grads:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def close(a, b, start):
    """Within 1e-5 of the way that they went."""
    for (key, x), y, s in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), jax.tree.leaves(start), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(y - s)) + 1e-6), err_msg=str(key))


@every_case
def test_from_optax_and_to_optax(kernel, tx):
    expected, _ = theirs(tx, PARAMS, tx.init(PARAMS), GRADS)
    params, opt_state = theirs(tx, PARAMS, tx.init(PARAMS), GRADS[:HALF])
    state = checkpoint.from_optax(kernel, params, opt_state)
    close(ours(kernel, params, state, GRADS[HALF:])[0], expected, PARAMS)

    params, state = ours(kernel, PARAMS, kernel.init(PARAMS), GRADS[:HALF])
    opt_state = checkpoint.to_optax(kernel, state, tx.init(params))
    close(theirs(tx, params, opt_state, GRADS[HALF:])[0], expected, PARAMS)
    again = checkpoint.from_optax(kernel, params, opt_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again.slots, state.slots)


def test_into_other_things_around_the_rule():
    tx = optax.adamw(0.1)
    params, opt_state = theirs(tx, PARAMS, tx.init(PARAMS), GRADS[:HALF])
    kernel = jk.adamw(0.1, state_dtype="bfloat16", use_ema=True, skip_nonfinite=True)
    state = checkpoint.from_optax(kernel, jk.pack(params), opt_state)
    assert int(state.count) == HALF and state.slots["velocity"].buffers["float32"].dtype == jnp.bfloat16


def test_a_bare_array():
    kernel, tx = CASES["adam"]
    p = jnp.ones(3)
    params, opt_state = theirs(tx, p, tx.init(p), [p])
    state = checkpoint.from_optax(kernel, params, opt_state)
    again = checkpoint.to_optax(kernel, state, tx.init(p))
    jax.tree.map(np.testing.assert_array_equal, again, opt_state)


def test_refused():
    with pytest.raises(ValueError, match="must be a state of an optax optimizer"):
        checkpoint.from_optax(jk.adam(), PARAMS, {"x": 1})
    with pytest.raises(ValueError, match="Ftrl keeps .* which no known optimizer of optax keeps"):
        checkpoint.from_optax(jk.ftrl(), PARAMS, optax.adam(0.1, **OB).init(PARAMS))
    amsgrad = jk.adam(amsgrad=True)
    with pytest.raises(ValueError, match="Use `variant='optax'`"):
        checkpoint.from_optax(amsgrad, PARAMS, optax.amsgrad(0.1, **OB).init(PARAMS))
    with pytest.raises(ValueError, match="has no slot for optax's `nu`"):
        checkpoint.to_optax(jk.lion(), jk.lion().init(PARAMS), optax.adam(0.1, **OB).init(PARAMS))
    with pytest.raises(ValueError, match="must not be 0"):
        checkpoint.from_optax(jk.sgd(0.0, momentum=0.9), PARAMS, optax.sgd(0.1, momentum=0.9).init(PARAMS))
    with pytest.raises(TypeError, match="Only a `Rule` can be converted"):
        checkpoint.from_optax(jk.Kernel.from_optax(optax.adam(0.1, **OB)), PARAMS, optax.adam(0.1, **OB).init(PARAMS))


def test_a_kernel_of_ours_within():
    """The state of one that optax injects numbers into, or chains, is its own."""
    for tx in (optax.inject_hyperparams(jk.adam)(0.1), optax.chain(optax.clip(1.0), jk.adam(0.1))):
        updates, opt_state = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
        state = checkpoint.from_optax(jk.adam(0.1), PARAMS, opt_state)
        kernel = jk.adam(0.1)
        _, expected = kernel.update(jax.tree.map(lambda g: jnp.clip(g, -1, 1), GRADS[0]), kernel.init(PARAMS), PARAMS)
        assert int(state.count) == 1
        # optax injects 0.999 as a float32, and what that lacks to 1 is off by 1e-5.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), state.slots, expected.slots)
        back = checkpoint.to_optax(kernel, state, tx.init(PARAMS))
        jax.tree.map(np.testing.assert_array_equal, back, opt_state)


def slots_table():
    """The table of docs/from_optax.md, from what `from_optax` converts by."""
    kinds = {}
    for rule, names in TABLE.items():
        kinds.setdefault(tuple(names.items()), []).append({"AdamPart": "Muon's Adam"}.get(rule, rule))
    rows = ["| rules | here | optax |", "| --- | --- | --- |"]
    for names, rules in kinds.items():
        ours, theirs = (", ".join(f"`{name}`" for name in column) for column in zip(*names, strict=True))
        rows.append(f"| {', '.join(rules)} | {ours} | {theirs} |")
    return "\n".join(rows)


def test_the_guide_has_the_names_of_slots():
    text = (Path(__file__).parents[2] / "docs" / "from_optax.md").read_text(encoding="utf-8")
    assert text.split("<!-- slots -->")[1].strip() == slots_table()
    known = {field for fields in FIELDS.values() for field in fields}
    assert {theirs for names in TABLE.values() for theirs in names.values()} <= known
    for rule, names in TABLE.items():  # and the rules have no others
        own = AdamPart if rule == "AdamPart" else getattr(jk.rules, rule)
        assert names.keys() == {*own.State._fields}, rule
