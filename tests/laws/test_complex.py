"""Complex parameters train as such, where a rule says that it can: the plane has no preferred axis.

A complex number is two real ones, and a rule made for it treats them as one: turning parameter and gradient by an angle
turns the step by that angle, and on the real axis the rule is the real one. A rule without such a form says so at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import RULE_BY_RULE, SMALL, assert_rounded, gradients, parameters, rounding, run, types

# complex64 times float32 is complex64, which strict promotion does not let pass; `types` checks that nothing widens.
pytestmark = pytest.mark.usefixtures("jax_defaults")

STEPS = 3
C = jnp.complex64
with_form = pytest.mark.parametrize("case", [c for c in RULE_BY_RULE if c.rule.complex_ok], ids=str)
without_form = pytest.mark.parametrize("case", [c for c in RULE_BY_RULE if not c.rule.complex_ok], ids=str)


@with_form
def test_turned_equals_turned(case):
    kernel, params, grads = case.kernel(), parameters(dtype=C), gradients(STEPS, dtype=C)
    angle = np.exp(np.complex64(0.7j))
    turn = lambda tree: jax.tree.map(lambda x: jnp.asarray(np.asarray(x) * angle), tree)
    (p, s), (q, t) = run(kernel, params, grads), run(kernel, turn(params), [turn(g) for g in grads])
    assert types((p, s)) == types((q, t)) == types((params, kernel.init(params)))
    for name in SMALL:
        assert_rounded(q[name], np.asarray(p[name]) * angle, rounding(C, STEPS), name)
        assert (np.asarray(p[name]) != np.asarray(params[name])).all()


@with_form
def test_real_numbers_stay_real(case):
    kernel, params, grads = case.kernel(), parameters(), gradients(STEPS)
    expected, _ = run(kernel, params, grads)
    as_complex = lambda tree: jax.tree.map(lambda x: x.astype(C), tree)
    p, _ = run(kernel, as_complex(params), [as_complex(g) for g in grads])
    for name in SMALL:
        assert_rounded(p[name], expected[name].astype(C), rounding(C, STEPS), name)


@without_form
def test_says_so(case):
    with pytest.raises(TypeError, match="complex.*`kernel`.*complex64"):
        case.kernel().init({"bias": jnp.zeros(3), "kernel": jnp.zeros((4, 3), C)})
