"""A state of other parameters or options is refused with a sentence, before anything changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.checkpoint import from_dict, to_dict

WRAPPERS = {
    "plain": lambda kernel: kernel,
    "partition": lambda kernel: jk.partition({"w": kernel}),
    "loss_scaled": lambda kernel: jk.loss_scaled(kernel, 1.0),
    "both": lambda kernel: jk.loss_scaled(jk.partition({"w": kernel}), 1.0),
}
W = (64, 128)


def params(shape=W, dtype=jnp.float32):
    return {"w": jnp.ones(shape, dtype)}


# the options of the kernel of the step, those of the kernel that made the state, its parameters, and the message
STATES = {
    "shape": ({}, {}, params((64, 1)), r"`momentum` of `w` as float32\[64, 1\].*keeps float32\[64, 128\]"),
    "rank": ({}, {}, params(()), r"as float32\[\]"),
    "int8 wanted": ({"state_dtype": "int8"}, {}, params(), r"as float32\[64, 128\].*keeps int8\[64, 128\]"),
    "int8 found": ({}, {"state_dtype": "int8"}, params(), r"as int8\[64, 128\].*keeps float32\[64, 128\]"),
    "int4 for int8": ({"state_dtype": "int8"}, {"state_dtype": "int4"}, params(), r"as int4.*keeps int8"),
    "bfloat16 wanted": ({"state_dtype": "bfloat16"}, {}, params(), "as float32.*keeps bfloat16"),
    "average of another shape": ({"use_ema": True}, {"use_ema": True}, params((1,)), r"`average` of `w`"),
}


@pytest.mark.parametrize("call", ["step", "update"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_is_refused(name, wrapper, call):
    wanted, given, old, message = STATES[name]
    kernel, made = (WRAPPERS[wrapper](jk.adam(0.1, **options)) for options in (wanted, given))
    state, p = made.init(old), params()
    g = jax.tree.map(jnp.ones_like, p)
    with pytest.raises(ValueError, match=message) as error:
        kernel.step(p, state, g) if call == "step" else kernel.update(g, state, p)
    assert "from_dict(kernel, params, to_dict(state))" in str(error.value)
    assert not any(x.is_deleted() for x in jax.tree.leaves((p, state)))
    if old["w"].shape == W:  # the way that the message names
        new, _ = kernel.step(p, from_dict(kernel, p, to_dict(state)), g)
        assert np.all(np.isfinite(new["w"]))


@pytest.mark.parametrize("kinds", [("float32", "bf16+16"), ("bf16+8", "bf16+16"), ("bf16+16", "float32")])
def test_masters_of_another_form_are_refused(kinds):
    p = params(dtype=jnp.bfloat16)
    kernel, made = (jk.adam(0.1, master_weights=kind) for kind in kinds)
    with pytest.raises(ValueError, match="the slot `master` of `w` as"):
        kernel.step(p, made.init(p), p)


def test_a_state_that_was_cast_is_taken():
    """Casting a state to save memory is common, and changes no algorithm."""
    kernel, p = jk.adam(0.1), params()
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim else x, kernel.init(p))
    p, state = kernel.step(p, state, params())
    assert state.slots["momentum"]["w"].dtype == jnp.bfloat16 and np.all(np.asarray(p["w"]) < 1)


@pytest.mark.parametrize("made_with, calls", [(4, 1), (4, 2), (4, 3), (2, 1), (3, 2)])
def test_a_window_of_another_length_ends(made_with, calls):
    """The first window of the new length has all calls since the last update, and takes their mean."""
    p, g = {"w": jnp.zeros(2)}, [jnp.full(2, float(i + 1)) for i in range(8)]
    state = (kernel := jk.sgd(1.0, gradient_accumulation_steps=made_with)).init(p)
    for i in range(calls):
        p, state = kernel.step(p, state, {"w": g[i]})
    kernel, i = jk.sgd(1.0, gradient_accumulation_steps=2), calls
    while not int(state.count):
        p, state = kernel.step(p, state, {"w": g[i]})
        i += 1
    assert i == max(calls + 1, 2)
    np.testing.assert_allclose(p["w"], -np.mean([float(j + 1) for j in range(i)]))
    p, state = kernel.step(*kernel.step(p, state, {"w": g[0]}), {"w": g[0]})
    assert int(state.count) == 2
