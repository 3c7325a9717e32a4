"""Variables packed in one buffer: optimizers, losses, reads and writes."""

import copy
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.stateful.scope import Scope
from tests.stateful.facade import close, refused, same, unchanged, values

SHAPES = {"kernel": (2, 3), "scalar": (), "empty": (0, 2), "bias": (5,), "half": (4,)}


def variables():
    rng = np.random.default_rng(0)
    made = [jk.Variable(rng.normal(size=shape), dtype="float32", name=name) for name, shape in SHAPES.items()]
    made[-1] = jk.Variable(made[-1].value, dtype="bfloat16", name="half")
    return made


def loss_over(made):
    return lambda x: sum(jnp.sum((v.value.astype(jnp.float32) * x - i) ** 2) for i, v in enumerate(made))


def trained(make, steps=4, packs=True):
    made = variables()
    given = jk.pack_variables(made) if packs else made
    optimizer, loss = make(), loss_over(made)
    for i in range(steps):
        _, grads = jk.value_and_grad(loss, given, jnp.float32(1 + i))
        optimizer.apply_gradients(zip(grads, given, strict=True))
        if i == 1:  # read and assigned between two steps
            made[0].assign_add(np.ones((2, 3)))
            made[4].assign(made[4].value * jnp.bfloat16(2))
    return optimizer, made


# On whole buffers: a plain rule, one with numbers kept once, every stage. One by one: a norm, a fallback, and what
# each option alone asks for.
OPTIMIZERS = {
    "adam": lambda: jk.Adam(0.1),
    "nadam": lambda: jk.Nadam(0.1),
    "every stage": lambda: jk.AdamW(
        0.1, use_ema=True, gradient_accumulation_steps=2, global_clipnorm=0.5, master_weights="bf16+16"
    ),
    "lamb": lambda: jk.Lamb(0.1),
    "muon": lambda: jk.Muon(0.1),
    "clipnorm": lambda: jk.SGD(0.1, momentum=0.9, clipnorm=0.5),
    "constraints": lambda: jk.SGD(0.1, constraints={"kernel": jnp.abs}),
    "some decay": lambda: jk.AdamW(0.1, weight_decay=0.1, exclude_from_weight_decay=["bias"]),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_packed_equals_unpacked(make):
    packed, theirs = trained(make)
    plain, ours = trained(make, packs=False)
    close(values(theirs), values(ours))
    for name in set(plain.get_slot_names()) - {
        "master"
    }:  # which counts last places, and norms are summed in another order
        for p, q in zip(theirs, ours, strict=True):
            if q.path in plain.state.slots.get(name, {}):
                close(packed.get_slot(p, name).value, plain.get_slot(q, name).value)


def test_a_step_handles_the_buffers_only():
    made = variables()
    optimizer, packed = jk.Adam(0.1), jk.pack_variables(made)
    assert [(b.path, b.shape) for b in packed] == [("packed/float32", (12,)), ("packed/bfloat16", (4,))]
    optimizer.apply_gradients([(jnp.ones(b.shape, b.dtype), b) for b in packed])
    assert [v.shape for v in optimizer.variables] == [(), (), (12,), (12,), (4,), (4,)]
    assert not any(b._cache for b in packed)  # nothing was done for the single variables
    assert made[0].value is made[0].value  # cut out once


def test_values_that_somebody_keeps_stay():
    made = variables()
    packed, optimizer = jk.pack_variables(made), jk.Adam(0.1)
    for _ in range(2):
        kept = [*(v.value for v in made), *(b.value for b in packed)]
        before = [np.array(x) for x in kept]
        optimizer.apply_gradients([(jnp.ones(b.shape, b.dtype), b) for b in packed])
        same([np.array(x) for x in kept], before)
        assert not np.any(np.asarray(made[0].value) == before[0])


def test_assigned_values_reach_the_buffer():
    made = variables()
    (packed, _), old = jk.pack_variables(made), made[0].numpy()
    kept = packed.value
    made[1].assign(7.0)
    np.testing.assert_array_equal(packed.value, [*old.ravel(), 7, *made[3].numpy()])
    for v in made[:4]:
        v.assign(jnp.full(v.shape, 2.0))
    np.testing.assert_array_equal(packed.value, np.full(12, 2))
    packed.assign(np.arange(12))
    np.testing.assert_array_equal(made[0].value, [[0, 1, 2], [3, 4, 5]])
    assert float(kept[6]) != 7


@pytest.mark.parametrize("batch", [(), (2.0,)], ids=["closure", "batch"])
def test_a_loss_that_assigns(batch):
    w, b = jk.Variable([1.0, 2.0], name="w"), jk.Variable([3.0], name="b")
    packed = jk.pack_variables([w, b])

    def loss(x=2.0):
        first = jnp.sum(w.value) * x
        w.assign(w.value * 10)
        return first + jnp.sum(w.value) + jnp.sum(b.value**2)

    value, (g,) = jk.value_and_grad(loss, packed, *batch)
    assert float(value) == 6 + 30 + 9
    np.testing.assert_array_equal(g, [12, 12, 6])
    np.testing.assert_array_equal(packed[0].value, [10, 20, 3])
    scope = Scope([packed[0]], [jnp.zeros(3)])
    with scope.active():
        assert float(w[0]) == 0
        packed[0].assign(jnp.ones(3))
        assert float(w[0]) == 1


@pytest.mark.parametrize("batch", [(), (2.0,)], ids=["closure", "batch"])
def test_a_loss_that_reads_others(batch):
    w, b = jk.Variable([1.0, 2.0], name="w"), jk.Variable([3.0], name="b")
    jk.pack_variables([w, b])
    for size in (3.0, 5.0):  # the value at the time of the call, not of the first
        b.assign([size])
        value, (g,) = jk.value_and_grad(lambda x=2.0: jnp.sum(w.value * b.value) * x, [w], *batch)
        assert float(value) == 6 * size
        np.testing.assert_array_equal(g, [2 * size, 2 * size])


def test_what_is_kept_is_never_traced():
    made = variables()
    (packed, _) = jk.pack_variables(made)
    made[3].assign(np.arange(5))
    first, second, whole = jax.jit(lambda: (made[0].value + 1, made[3].value + 1, packed.value + 1))()
    close((first, second, whole), (made[0].value + 1, made[3].value + 1, packed.value + 1))


def test_minimize_and_lists():
    made = variables()
    packed, optimizer = jk.pack_variables(made[:4]), jk.Adam(0.1)
    optimizer.minimize(lambda: loss_over(made[:4])(1.0), packed)
    weights = optimizer.get_weights()
    assert [w.shape for w in weights] == [(), (12,), (12,)]
    optimizer.set_weights([w + 1 for w in weights])
    np.testing.assert_array_equal(optimizer.get_slot(made[3], "momentum").value, weights[1][7:] + 1)
    slot = optimizer.get_slot(made[0], "velocity")
    assert slot.name == "kernel_velocity" and slot.shape == (2, 3)
    slot.assign(np.full((2, 3), 5.0))
    np.testing.assert_array_equal(optimizer.get_slot(packed[0], "velocity").value[:7], [5] * 6 + [weights[2][6] + 1])


def test_copies_and_pickles():
    made = variables()
    packed, optimizer = jk.pack_variables(made), jk.Adam(0.1)
    optimizer.apply_gradients([(jnp.ones(b.shape, b.dtype), b) for b in packed])
    theirs, again, twin = pickle.loads(pickle.dumps((made, packed, optimizer)))
    for pair in ((made, packed, optimizer), (theirs, again, twin), copy.deepcopy((theirs, again, twin))):
        v, b, o = pair
        assert v[0].buffer is b[0]
        o.apply_gradients([(jnp.ones(x.shape, x.dtype), x) for x in b])
        assert len(o.variables) == 6
    same(values(theirs), values(made))
    alone = copy.deepcopy(made[0])
    assert alone.buffer is None
    alone.assign(np.zeros((2, 3)))
    assert made[0].numpy().all()


def test_a_copy_of_an_optimizer_that_takes_them_one_by_one():
    optimizer, made = trained(OPTIMIZERS["lamb"], 2)
    twin = pickle.loads(pickle.dumps(optimizer))
    for o in (optimizer, twin):
        o.apply_gradients([(jnp.ones(b.shape, b.dtype), b) for b in dict.fromkeys(v.buffer for v in made)])
    same(twin.get_weights(), optimizer.get_weights())


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (3, TypeError, "`variables` must be a list"),
        ([jnp.ones(2)], TypeError, "must be `jaxopt_keras.Variable`s"),
        (
            [jk.Variable([1, 2], name="count")],
            TypeError,
            "of floats or complex numbers. Received: `count` of dtype int",
        ),
    ],
    ids=["no list", "an array", "integers"],
)
def test_what_cannot_be_packed(given, error, text):
    with pytest.raises(error, match=text):
        jk.pack_variables(given)


def test_what_cannot_be_packed_together():
    v, w = variables()[:2]
    with pytest.raises(TypeError, match="variables of other libraries cannot share a buffer"):
        jk.pack_variables([v, keras.Variable(1.0)])
    with pytest.raises(ValueError, match="Each variable may occur once. Received: `kernel` twice"):
        jk.pack_variables([v, w, v])
    assert v.buffer is None and jk.pack_variables([]) == []
    jk.pack_variables([v])
    with pytest.raises(ValueError, match="`kernel` is packed in `packed/float32` already"):
        jk.pack_variables([w, v])
    assert w.buffer is None


def test_what_does_not_go_with_whole_buffers():
    made = variables()[:2]
    (packed,) = jk.pack_variables(made)
    optimizer = jk.AdamW(0.1)
    with refused(ValueError, "must have the variable's shape .7,.", optimizer, packed):
        optimizer.apply_gradients([(jnp.ones(6), packed)])
    with refused(ValueError, "No gradients provided for any variable", optimizer, packed):
        optimizer.apply_gradients([(None, packed)])
    optimizer.apply_gradients([(jnp.ones(7), packed)])
    with refused(ValueError, "updates the buffer `packed/float32` that contains `kernel`", optimizer, packed):
        optimizer.apply_gradients([(jnp.ones((2, 3)), made[0])])
    with refused(KeyError, "`kernel` is registered in adam_w.* as part of `packed/float32`", optimizer, packed):
        optimizer.add_slot(made[0], "other")
    with refused(ValueError, "`clipnorm` acts on each variable separately", optimizer, packed):
        optimizer.clipnorm = 1.0
    with refused(ValueError, "`exclude_from_weight_decay` acts on each", optimizer, packed):
        optimizer.exclude_from_weight_decay([made[0]])
    with unchanged(optimizer, packed), pytest.raises(ValueError, match="Received: both of them"):
        jk.value_and_grad(lambda x: jnp.sum(made[0].value) * x, [packed, made[0]], 1.0)
    optimizer.exclude_from_weight_decay(made)  # all of them: that goes
    before = optimizer.get_slot(packed, "momentum").value
    optimizer.apply_gradients([(jnp.zeros(7), packed)])
    close(optimizer.get_slot(packed, "momentum").value, 0.9 * before)
