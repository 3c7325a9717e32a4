"""NaN stays where it is: a gradient that is not finite does not raise, and spoils no other array's training.

Of an `element` rule it spoils no other element. With sums over all arrays it shows in all of them. Any other step
that mixed arrays, or a scalar kept once that took in gradients, would let one bad layer destroy the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_keras.language.modifier import is_joint
from tests.laws.cases import SMALL, assert_same_bits, gradients, parameters, run, slots_at, switched_cases

bad_numbers = st.sampled_from([np.nan, np.inf, -np.inf])


@switched_cases
@settings(max_examples=5)
@given(bad=bad_numbers, name=st.sampled_from(list(SMALL)), data=st.data())
def test_nan_stays(case, bad, name, data):
    place = data.draw(st.tuples(*(st.integers(0, n - 1) for n in SMALL[name])))
    grads = gradients(3)
    spoilt = [grads[0] | {name: grads[0][name].at[place].set(bad)}, *grads[1:]]
    kernel = case.kernel()
    (p, s), (q, t) = run(kernel, parameters(), grads), run(kernel, parameters(), spoilt)
    if is_joint(case.rule):
        assert not any(jnp.isfinite(x).all() for x in q.values())
        return
    assert_same_bits((t.count, t.scalars), (s.count, s.scalars))
    for other in SMALL:
        there, expected = (q[other], slots_at(t, other)), (p[other], slots_at(s, other))
        if other != name:
            assert_same_bits(there, expected)
        elif case.rule.grain == "element":
            clean = np.ones(SMALL[name], bool)
            clean[place] = False
            assert_same_bits(*(jax.tree.map(lambda x, clean=clean: x[clean], tree) for tree in (there, expected)))
