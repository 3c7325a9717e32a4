"""Slots of classes that people write are packed between steps like a rule's, those of their inner optimizers too."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.slot_packing import FEW
from jaxopt_keras.packing.trees import Packed
from tests.stateful.test_people_laws import HANDED_ON, Keras3, Tf2

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable() or ""),
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]


class Around(jk.Optimizer):
    """Hands half of each gradient on to an inner optimizer."""

    def __init__(self, inner, learning_rate=0.1, **options):
        super().__init__(learning_rate, **options)
        self.inner = inner

    def update_step(self, gradient, variable, learning_rate):
        self.inner.update_step(gradient / 2, variable, learning_rate)


class Twice(Around):
    """Has another name for the inner optimizer of its inner optimizer."""

    def __init__(self, inner, learning_rate=0.1, **options):
        super().__init__(inner, learning_rate, **options)
        self.again = inner.inner


MADE = {
    "Keras 3": lambda **options: Keras3(0.1, **options),
    "TF 2": lambda **options: Tf2(0.1, **options),
    "handed on": lambda **options: HANDED_ON["Adam"](0.1, **options),
    "around a rule": lambda **options: Around(jk.Adam(0.1), **options),
    "around a class": lambda **options: Around(Keras3(0.1), **options),
    "around another": lambda **options: Around(Around(jk.SGD(0.1, momentum=0.9)), **options),
    "twice": lambda **options: Twice(Around(jk.SGD(0.1, momentum=0.9)), **options),
}


def variables():
    return [jk.Variable(jnp.full((2, 3), 0.5 + i), name=f"w{i}") for i in range(FEW)]


def innermost(optimizer):
    return innermost(optimizer.inner) if "inner" in vars(optimizer) else optimizer


def is_packed(optimizer):
    return isinstance(innermost(optimizer)._kept.slots, Packed)


def step(optimizer, vs, some=range(FEW)):
    optimizer.apply_gradients([(jnp.full((2, 3), i + 1.0) if i in some else None, v) for i, v in enumerate(vs)])


def assert_same(pairs):
    (a, vs), (b, ws) = pairs
    assert [v.name for v in a.variables] == [v.name for v in b.variables]
    for x, y in zip([*a.variables, *vs], [*b.variables, *ws], strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", MADE)
def test_slots_rest_in_a_buffer_until_somebody_looks(name):
    pairs = [(MADE[name](flat_state=x), variables()) for x in (None, False)]
    for some in (range(FEW), range(FEW), range(3), range(FEW)):
        for optimizer, vs in pairs:
            step(optimizer, vs, some)
        assert int(pairs[0][0].iterations) == int(pairs[1][0].iterations)  # which unpacks nothing
        assert is_packed(pairs[0][0])
    assert not is_packed(pairs[1][0])
    assert len(jax.tree.leaves(innermost(pairs[0][0])._kept.slots)) == 1
    for optimizer, vs in pairs:  # what is written after a look is seen by the next step
        inner = innermost(optimizer)
        slot = inner.get_slot(vs[0], inner.get_slot_names()[0])
        slot.assign(jnp.full((2, 3), 3.0))
        step(optimizer, vs)
        slot.assign(slot.value * 2)
        step(optimizer, vs)
    assert is_packed(pairs[0][0])
    assert_same(pairs)
    for optimizer, vs in pairs:
        step(optimizer, vs)
    twins = [(copy.deepcopy(optimizer), variables()) for optimizer, _ in pairs]
    for twin, vs in twins:
        step(twin, vs)
    assert_same(twins)
    if "Adam" not in type(pairs[0][0]).__name__:  # made by a function, which pickle cannot name
        assert_same([(pickle.loads(pickle.dumps(optimizer)), []) for optimizer, _ in pairs])
    assert_same(pairs)


@pytest.mark.parametrize("name", ["Keras 3", "TF 2", "around a rule"])
def test_a_step_passes_as_few_arrays_as_a_rule_s(name):
    counts = []
    for optimizer in (MADE[name](), jk.SGD(0.1, momentum=0.9)):
        vs = variables()
        step(optimizer, vs)
        call = optimizer._prepare_step({f"w{i}": jnp.ones((2, 3)) for i in range(FEW)})
        counts.append(len(jax.tree.leaves(call[1:])))
    assert counts[0] < counts[1] + FEW  # an inner optimizer has numbers of its own, but no slot for each variable


def test_uncompiled_hooks_see_plain_slots():
    optimizer, vs = Keras3(0.1, jit_compile=False), variables()
    step(optimizer, vs)
    assert not is_packed(optimizer)


@pytest.mark.parametrize("name", ["around another", "twice"])
def test_inner_optimizers_of_inner_ones(name):
    optimizer, vs = MADE[name](), variables()
    plain, ws = jk.SGD(0.1, momentum=0.9), variables()
    for _ in range(3):
        step(optimizer, vs)
        plain.apply_gradients([(jnp.full((2, 3), (i + 1.0) / 4), w) for i, w in enumerate(ws)])
    for v, w in zip(vs, ws, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-6)
    names = [v.name for v in optimizer.variables]
    assert names.count("w0_momentum") == 1
    assert names.count("iteration") == 3


def test_an_optimizer_that_contains_itself_is_refused():
    inner = Around(jk.Adam(0.1))
    outer = Around(inner)
    inner.outside = outer
    with pytest.raises(ValueError, match="`outside` of Around is Around, which contains it"):
        outer.build(variables())
