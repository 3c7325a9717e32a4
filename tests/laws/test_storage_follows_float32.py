"""However slots and parameters are stored, the optimizer goes where it goes in float32.

A rule does not know how it is stored: the pipeline opens what is stored before it, and stores what it returns. So a
master weight, which is the parameter in float32, goes exactly where a float32 parameter goes; slots in fewer bits go
nearly there; types stay what they were; and `update` reaches what `step` reaches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_keras.engine.slot_storage import Stored, dequantize
from jaxopt_keras.rules import ACProp
from tests.laws.cases import FIRST, PLAIN_KINDS, Case, assert_close, draw, gradients, parameters, run, slots_at, types

SHAPES = {"kernel": (64, 80), "bias": (3,)}
STEPS = 5
FEW = [case for case in FIRST if type(case.rule).__name__ in ("Adam", "Lamb")]
# By default, ACProp's step after a gradient near 0 has no bound, and what is stored decides it: its docstring says so.
BOUNDED = [
    case._replace(rule=dataclasses.replace(case.rule, epsilon=1e-8)) if isinstance(case.rule, ACProp) else case
    for case in FIRST
]
# How far from float32 the parameters may be, as a part of the distance travelled: twice what rounding makes of it.
NEAR = {"bfloat16": 0.01, "int8": 0.1, "int4": 0.5}


def half(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def start():
    """Parameters that bfloat16 holds exactly, so that all begin in the same place."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), half(draw(SHAPES, 0)))


@pytest.mark.parametrize(
    "kind,case", [("bf16+16", case) for case in PLAIN_KINDS] + [("float32", case) for case in FEW], ids=str
)
def test_masters_go_where_float32_goes(case: Case, kind):
    grads = gradients(STEPS, SHAPES)
    expected, _ = run(case.kernel(), start(), grads)
    kernel = case.kernel(master_weights=kind)
    params, state = run(kernel, half(start()), grads)
    masters = {k: dequantize(kernel.options, Stored(p, slots_at(state, k)), jnp.float32)[0] for k, p in params.items()}
    assert_close(masters, expected, STEPS)
    for name, master in masters.items():
        np.testing.assert_array_equal(params[name], master.astype(jnp.bfloat16), err_msg=name)


@pytest.mark.parametrize(
    "form,case", [("int8", case) for case in BOUNDED] + [(f, c) for f in ("bfloat16", "int4") for c in FEW], ids=str
)
def test_slots_go_nearly_there(case: Case, form):
    grads = gradients(STEPS, SHAPES)
    expected, _ = run(case.kernel(), start(), grads)
    kernel = case.kernel(state_dtype=form)
    state = kernel.init(start())
    found, after = run(kernel, start(), grads, state)
    assert types(after) == types(state)
    for name, first in start().items():
        apart, travelled = np.linalg.norm(found[name] - expected[name]), np.linalg.norm(expected[name] - first)
        assert apart <= NEAR[form] * travelled, name


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"master_weights": "bf16+8"}], ids=str)
def test_update_reaches_what_step_reaches(case: Case, options):
    kernel, params = case.kernel(state_dtype="int8", **options), half(start())
    state = kernel.init(params)
    for g in gradients(3, SHAPES):
        updates, other = kernel.update(g, state, params, full_precision=True)
        added = jax.tree.map(lambda p, u: (p.astype(jnp.float32) + u).astype(p.dtype), params, updates)
        params, state = kernel.step(params, state, g, donate=False)
        for name in params:
            np.testing.assert_array_equal(added[name], params[name], err_msg=name)
        assert_close(other, state, 1)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_with_every_stage(case: Case):
    """Accumulation, averages and clips meet stored forms in the same compiled step."""
    options = {"use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2, "clipnorm": 0.5}
    kernel = case.kernel(state_dtype="int8", master_weights="bf16+8", rounding="stochastic", **options)
    params = half(parameters(SHAPES))
    state = kernel.init(params)
    moved, after = run(kernel, params, gradients(4, SHAPES), state)
    assert types(after) == types(state) and int(after.count) == 2
    assert all(np.any(np.asarray(moved[name] != params[name])) for name in params)
