"""LossScaleOptimizer and MultiOptimizer: their parts by themselves, their steps, lists, copies and configs."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.stateful.state_views import masked
from tests.stateful.facade import close, same, some_grads, two, values


class Custom(jk.Optimizer):
    """With hooks of Keras 3, which are traced."""

    def build(self, variables):
        super().build(variables)
        self.seen = [self.add_variable_from_reference(v, "seen") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(self.seen[self._get_variable_index(variable)], gradient)
        self.assign_sub(variable, learning_rate * gradient)


INNER = {
    "adam": lambda: jk.Adam(0.1, use_ema=True, skip_nonfinite=True),
    "accumulating": lambda: jk.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
    "scheduled": lambda: jk.AdamW(jk.schedules.CosineDecay(0.1, 10), global_clipnorm=1.0),
    "custom": lambda: Custom(0.1),
}
OUTER = {
    "loss scale": lambda inner: jk.LossScaleOptimizer(inner, 256.0, 3),
    "multi": lambda inner: jk.MultiOptimizer(jk.OptimizerMap(inner)),
    "both": lambda inner: jk.LossScaleOptimizer(jk.MultiOptimizer(jk.OptimizerMap(inner)), 256.0, 3),
}


def scaled(optimizer, grads):
    return [optimizer.scale_loss(g) for g in grads]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_the_inner_optimizer_is_what_runs(inner, outer):
    plain, wrapped, ours, theirs = INNER[inner](), OUTER[outer](INNER[inner]()), two(), two()
    for i in range(4):
        plain.apply(some_grads(i), ours)
        wrapped.apply(scaled(wrapped, some_grads(i)), theirs)
    close(values(theirs), values(ours))
    assert int(wrapped.iterations) == int(plain.iterations)
    before = [np.array(v) for v in theirs], int(wrapped.iterations), int(wrapped.skipped)
    if outer == "multi" and inner != "adam":  # there is no guard
        return
    wrapped.apply([jnp.full((2, 3), jnp.inf), jnp.ones(3)], theirs)
    assert [np.array(v) for v in theirs][0].tolist() == before[0][0].tolist()
    assert int(wrapped.iterations) == before[1] and int(wrapped.skipped) == before[2] + 1


@pytest.mark.parametrize("outer", OUTER)
def test_lists_copies_and_configs(outer, tmp_path):
    optimizer, variables = OUTER[outer](jk.Adam(0.1, name="inner")), two()
    optimizer.build(variables)
    optimizer.apply(scaled(optimizer, some_grads()), variables)
    twins = [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer), copy.copy(optimizer)]
    fresh = OUTER[outer](jk.Adam(0.1))
    fresh.build(two())
    store: dict = {}
    optimizer.save_own_variables(store)
    fresh.load_own_variables(store)
    other = OUTER[outer](jk.Adam(0.1))
    other.build(two())
    other.set_weights(optimizer.get_weights())
    start = values(variables)
    optimizer.apply(scaled(optimizer, some_grads(1)), variables)
    for twin in (*twins, fresh, other):
        again = [jk.Variable(x, name=v.name) for x, v in zip(start, variables, strict=True)]
        if twin is twins[2]:  # knows the same variables
            for v, x in zip(variables, start, strict=True):
                v.assign(x)
            again = variables
        elif twin in (fresh, other):
            again = [h.variable for h in twin._handles.values()]
            for v, x in zip(again, start, strict=True):
                v.assign(x)
        twin.apply(scaled(twin, some_grads(1)), again)
        same([np.array(v) for v in twin.variables], [np.array(v) for v in optimizer.variables])
    config = jk.serialize(optimizer)
    assert jk.serialize(jk.deserialize(json.loads(json.dumps(config)))) == config
    new, moved = optimizer.stateless_apply(
        [v.value for v in optimizer.variables], scaled(optimizer, some_grads(2)), [v.value for v in variables]
    )
    optimizer.apply(scaled(optimizer, some_grads(2)), variables)
    close(new, values(variables))
    close([np.array(x) for x in moved], [np.array(v) for v in optimizer.variables])
    optimizer.state = optimizer.state


def test_loss_scale_as_keras():
    """The scale, the counter and the weights, through growth and overflow."""
    ours, theirs = (
        jk.LossScaleOptimizer(jk.SGD(0.1, 0.9), 64.0, 3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, 0.9), 64.0, 3),
    )
    variables, arrays = two("keras"), [jnp.array(x) for x in values(two())]
    ours.build(variables)
    theirs.build(two("keras"))
    state = [v.value for v in theirs.variables]
    names = [v.name for v in ours.variables]
    assert names[:4] == ["iteration", "learning_rate", "step_counter", "dynamic_scale"]
    assert len(names) == len(state) + 1 and names[-1] == "skipped"
    for i, factor in enumerate([1, 1, 1, 1, np.nan, 1, 1, 1, 1]):
        grads = [g * factor * ours.dynamic_scale.value for g in some_grads(i)]
        ours.apply(grads, variables)
        arrays, state = theirs.stateless_apply(state, grads, arrays)
        close([np.array(v) for v in ours.variables[:-1]], [np.array(x) for x in state], atol=1e-6)
        close(values(variables), [np.array(x) for x in arrays], atol=1e-6)
    assert int(ours.skipped) == 1


def test_the_scale_has_a_floor_and_a_ceiling():
    optimizer, (w, _) = jk.LossScaleOptimizer(jk.SGD(), 4.0, 1, lowest_scale=2.0, highest_scale=8.0), two()
    for factor, expected in ((1, 8), (1, 8), (np.nan, 4), (np.nan, 2), (np.nan, 2), (1, 4)):
        optimizer.apply([jnp.ones((2, 3)) * factor], [w])
        assert float(optimizer.dynamic_scale) == expected
    optimizer.dynamic_scale.assign(2.0)
    assert float(optimizer.scale_loss(jnp.float16(3.0))) == 6.0


def test_groups_as_keras():
    def made(lib):
        return lib.MultiOptimizer(lib.OptimizerMap(lib.Adagrad(0.1), {".*bias": lib.SGD(0.1, momentum=0.9)}))

    ours, theirs, variables, others = made(jk), made(keras.optimizers), two(), two("keras")
    ours.build(variables)
    theirs.build(others)
    for i in range(3):
        ours.apply(some_grads(i), variables)
        theirs.apply(some_grads(i), others)
    close(values(variables), values(others))
    close([np.array(v) for v in ours.variables], [np.array(v.value) for v in theirs.variables])
    assert [v.name for v in ours.variables][:2] == ["iteration", "learning_rate"]


def test_groups():
    slow, fast = jk.SGD(0.25, weight_decay=0.5), jk.SGD(0.5)
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(fast, {"kernel": slow}))
    kernel, bias = two()
    with pytest.warns(UserWarning, match="'kernel' matches no parameter"):  # so far
        optimizer.apply([jnp.ones(3)], [bias])
    assert int(slow.iterations) == 0 and int(fast.iterations) == int(optimizer.iterations) == 1
    slow.learning_rate = 0.0
    optimizer.apply([jnp.ones((2, 3)), jnp.ones(3)], [kernel, bias])
    same(values([kernel]), values(two()[:1]))
    assert optimizer.optimizers == [slow, fast]
    assert optimizer.get_slot_names() == []
    optimizer.loss_scale_factor = 2.0
    assert slow.loss_scale_factor == fast.loss_scale_factor == 2.0 and float(optimizer.scale_loss(1.0)) == 2.0
    with pytest.raises(AttributeError, match="no learning rate of its own"):
        optimizer.learning_rate = 0.1
    with pytest.raises(AttributeError, match="no learning rate of its own"):
        _ = optimizer.learning_rate
    with pytest.raises(AttributeError, match="inner optimizer"):
        optimizer.clipnorm = 1.0
    with pytest.raises(AttributeError, match="inner optimizer"):
        optimizer.exclude_from_weight_decay([kernel])


def test_a_function_chooses():
    made = {}
    optimizer = jk.MultiOptimizer(lambda v: made.setdefault(len(v.shape), jk.SGD(float(len(v.shape)))))
    variables = two()
    optimizer.apply([jnp.ones((2, 3)), jnp.ones(3)], variables)
    close(
        [before - after for before, after in zip(values(two()), values(variables), strict=True)],
        [np.full((2, 3), 2.0, np.float32), np.ones(3, np.float32)],
    )
    with pytest.raises(TypeError, match="function"):
        optimizer.get_config()


def test_all_or_nothing():
    groups = jk.OptimizerMap(jk.Adam(), {"bias": Failing(0.1)})
    optimizer, variables = jk.MultiOptimizer(groups), two()
    start = values(variables)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            optimizer.apply(some_grads(), variables)
        same(values(variables), start)
        assert [int(o.iterations) for o in optimizer.optimizers] == [0, 0] and not optimizer.built
        assert all(not o._paths for o in optimizer.optimizers)


class Failing(jk.Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        raise RuntimeError("on purpose")


def test_what_is_refused():
    for make, error, text in [
        (lambda: jk.LossScaleOptimizer("adam"), TypeError, "must be an `Optimizer`"),
        (lambda: jk.LossScaleOptimizer(jk.LossScaleOptimizer(jk.SGD())), ValueError, "already"),
        (lambda: jk.LossScaleOptimizer(jk.SGD(), 0.0), ValueError, "in the order"),
        (lambda: jk.MultiOptimizer({}), TypeError, "OptimizerMap"),
        (lambda: jk.OptimizerMap(jk.SGD(), {"a": "sgd"}), TypeError, "must have an `Optimizer`"),
        (lambda: jk.OptimizerMap(jk.LossScaleOptimizer(jk.SGD())), ValueError, "all groups together"),
        (lambda: jk.OptimizerMap(jk.SGD(), {"(": jk.SGD()}), ValueError, "regular expressions"),
    ]:
        with pytest.raises(error, match=text):
            make()
    optimizer, variables = jk.LossScaleOptimizer(jk.SGD()), two()
    optimizer.build(variables)
    for bad, error, text in [
        ([jnp.ones(2), jnp.ones(3)], ValueError, "kernel"),
        ([None, None], ValueError, "No gradients"),
    ]:
        with pytest.raises(error, match=text):
            optimizer.apply(bad, variables)
    with pytest.raises(ValueError, match="2 gradients|must hold one"):
        optimizer.apply([jnp.ones(3)], variables)
    with pytest.raises(TypeError, match="inside"):
        jax.jit(lambda g: optimizer.apply([g], variables[1:]))(jnp.ones(3))


def test_nothing_compiles_anew():
    optimizer = jk.LossScaleOptimizer(jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(), {"bias": jk.SGD(0.1)})))
    variables = two()
    optimizer.apply(some_grads(), variables)
    program = optimizer._kernel().compiled.step_donating
    count = program._cache_size()
    optimizer.inner_optimizer.optimizers[0].learning_rate = 0.5
    for i in range(3):
        optimizer.apply(some_grads(i), variables)
    assert optimizer._kernel().compiled.step_donating is program and program._cache_size() == count > 0


# --- an inner optimizer is a group of the wrapper's state --------------------------------------------------------


def groups():
    """A wrapper of two groups, and the variables, whose paths begin with the name of their group."""
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(0.125), {"0.*": jk.SGD(0.25, momentum=0.5)}))
    return optimizer, [jk.Variable(jnp.full(3, 1.0 + i), name=f"{i}/w") for i in range(2)]


def drawn(i):
    return [jnp.arange(3.0) + i, 1.0 - jnp.arange(3.0) * i]


def pure_state(optimizer):
    """The optimizer's state as a kernel has it: with placeholders for missing slots, without hyperparameters."""
    state = optimizer.state
    return state._replace(slots=masked(state.slots, dict.fromkeys(optimizer._paths)), hyperparams={})


def restored(optimizer, saved, tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", saved)
    checkpoint.load(tmp_path / "x.safetensors", optimizer)


PURE = {
    "multi": (lambda o: o, lambda k: k),
    "both": (lambda o: jk.LossScaleOptimizer(o, 4.0, 2), lambda k: jk.loss_scaled(k, 4.0, 2)),
}


@pytest.mark.parametrize("around", PURE)
def test_the_state_is_one_of_the_pure_face(around):
    """A kernel continues from the optimizer's state, and the optimizer from the kernel's."""
    wrap, pure = PURE[around]
    inner, variables = groups()
    optimizer, paths = wrap(inner), [v.path for v in variables]
    kernel = pure(jk.partition({"0": jk.sgd(0.25, momentum=0.5), "1": jk.adam(0.125)}))
    params = dict(zip(paths, [jnp.array(v) for v in variables], strict=True))
    fresh = kernel.init(params)
    optimizer.build(variables)
    same(pure_state(optimizer), fresh)
    for i in range(3):
        grads = [4.0 * g for g in drawn(i)]
        params, state = kernel.step(params, pure_state(optimizer), dict(zip(paths, grads, strict=True)), donate=False)
        optimizer.apply(grads, variables)
        same(pure_state(optimizer), state)
        same(values(variables), [np.array(params[path]) for path in paths])
    present = optimizer.state
    optimizer.state = present._replace(slots=jax.tree.map(lambda x: x + 1, present.slots))
    same(optimizer.get_slot(variables[0], "momentum").numpy(), np.array(state.slots["momentum"]["0/w"] + 1))
    with pytest.raises(ValueError, match="must be a state of this optimizer"):
        optimizer.state = fresh._replace(scalars={})


@pytest.mark.parametrize("outer", OUTER)
def test_both_sides_see_what_the_other_writes(outer):
    inner, variables = jk.Adam(0.1), two()
    optimizer = OUTER[outer](inner)
    optimizer.build(variables)
    assert [v for v in optimizer.variables if v.optimizer is inner] == [*inner.variables]
    place = [v.optimizer is inner and v.name == "kernel_momentum" for v in optimizer.weights].index(True)
    weights = optimizer.get_weights()
    weights[place] += 3.0
    optimizer.set_weights(weights)
    assert np.all(inner.get_slot(variables[0], "momentum").numpy() == 3.0)
    inner.get_slot(variables[0], "momentum").assign(jnp.full((2, 3), 5.0))
    assert np.all(optimizer.get_weights()[place] == 5.0)
    assert np.all(optimizer.state.slots["momentum"][variables[0].path] == 5.0)
    inner.learning_rate, inner.iterations = 0.0, 7
    start = values(variables)
    optimizer.apply(scaled(optimizer, some_grads()), variables)
    same(values(variables), start)
    assert int(inner.iterations) == int(optimizer.iterations) == 8
    inner.apply(some_grads(), variables)  # alone
    assert any(v.optimizer is inner and int(v) == 9 for v in optimizer.variables if v.name == "iteration")


@pytest.mark.parametrize("outer", OUTER)
def test_an_inner_optimizer_that_was_trained_before_continues(outer):
    plain, inner, ours, theirs = jk.Adam(0.1), jk.Adam(0.1), two(), two()
    for optimizer, variables in ((plain, ours), (inner, theirs)):
        optimizer.apply(some_grads(), variables)
    wrapped = OUTER[outer](inner)
    for i in range(1, 3):
        plain.apply(some_grads(i), ours)
        wrapped.apply(scaled(wrapped, some_grads(i)), theirs)
    close(values(theirs), values(ours))
    close(wrapped.state.slots, plain.state.slots)


def test_restoring_keeps_the_slots_of_variables_that_only_the_inner_optimizer_has(tmp_path):
    inner, (kernel, bias) = jk.Adam(0.1), two()
    inner.apply(some_grads(), [kernel, bias])
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(inner))
    optimizer.apply(some_grads()[:1], [kernel])
    before = inner.state
    restored(optimizer, optimizer, tmp_path)
    optimizer.state = optimizer.state
    same(inner.state, before)
    inner.apply(some_grads(), [kernel, bias])


@pytest.mark.parametrize("outer", OUTER)
def test_two_wrappers_around_one_optimizer_share_its_state(outer):
    inner, variables = jk.Adam(0.1), two()
    first, second = OUTER[outer](inner), jk.LossScaleOptimizer(inner, 1.0)
    plain, others = jk.Adam(0.1), two()
    for i, optimizer in enumerate((first, second, first)):
        optimizer.apply(scaled(optimizer, some_grads(i)), variables)
        plain.apply(some_grads(i), others)
    close(values(variables), values(others))
    assert int(inner.iterations) == int(second.iterations) == 3


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("outer", OUTER)
def test_copies_of_a_pair_keep_the_tie_and_one_of_the_inner_is_alone(outer, copied):
    inner, variables = jk.Adam(0.1), two()
    optimizer = OUTER[outer](inner)
    optimizer.apply(scaled(optimizer, some_grads()), variables)
    for reverse in (False, True):
        pair = copied((inner, optimizer) if reverse else (optimizer, inner))
        new, within = pair[::-1] if reverse else pair
        new.apply(scaled(new, some_grads(1)), two())
        assert int(within.iterations) == int(new.iterations) == 2
        assert within in (new._inner[0], *new._inner[0].__dict__.get("_inner", ()))
    alone = copied(inner)
    optimizer.apply(scaled(optimizer, some_grads(1)), variables)
    assert int(alone.iterations) == 1 and int(inner.iterations) == 2


def test_a_pickle_has_each_array_once():
    """The wrapper's own pickle has numbers only: its groups have their states."""
    optimizer = OUTER["both"](jk.Adam(0.1))
    optimizer.apply(scaled(optimizer, some_grads()), two())
    for wrapper in (optimizer, optimizer.inner_optimizer):
        assert wrapper.__getstate__()["_kept"].slots == {}
    assert set(optimizer.inner_optimizer.optimizers[0].__getstate__()["_kept"].slots) == {"momentum", "velocity"}


def test_two_groups_may_have_variables_of_one_name(tmp_path):
    def made():
        variables, inner = [jk.Variable(jnp.ones(3), name="w") for _ in range(2)], iter((jk.Adam(0.1), jk.Adam(0.2)))
        return jk.MultiOptimizer(lambda v: next(inner)), variables

    (optimizer, variables), (other, others) = made(), made()
    optimizer.apply(drawn(1), variables)
    other.build(others)
    flat = checkpoint.to_dict(optimizer)
    assert {name for name in flat if name.startswith("slots/")} == {
        f"slots/{path}/{slot}" for path in ("w", "w_1") for slot in ("momentum", "velocity")
    }
    assert [o._paths for o in optimizer.optimizers] == [["w"], ["w"]]
    same(checkpoint.to_dict(copy.deepcopy(optimizer)), flat)  # which has no variables yet
    restored(other, optimizer, tmp_path)
    same(checkpoint.to_dict(other), flat)
    for start in others, variables:
        start[0].assign(jnp.ones(3))
        start[1].assign(jnp.ones(3))
    optimizer.apply(drawn(2), variables)
    other.apply(drawn(2), others)
    same(values(others), values(variables))


@pytest.mark.parametrize("outer", OUTER)
def test_packed_variables(outer, tmp_path):
    """Loss scaling steps over the buffer; groups unpack it, since it may hold variables of several."""
    plain, wrapped, ours, theirs = jk.Adam(0.1), OUTER[outer](jk.Adam(0.1)), two(), two()
    packed = jk.pack_variables(theirs)
    for i in range(3):
        grads = some_grads(i)
        plain.apply(grads, ours)
        wrapped.apply(scaled(wrapped, [jnp.concatenate([g.ravel() for g in grads])]), packed)
    close(values(theirs), values(ours))
    assert wrapped._paths == (["packed/float32"] if outer == "loss scale" else [v.path for v in theirs])
    close(wrapped.get_slot(theirs[1], "momentum").numpy(), plain.get_slot(ours[1], "momentum").numpy())
    flat, other = checkpoint.to_dict(wrapped), OUTER[outer](jk.Adam(0.1))
    assert {n for n in flat if n.startswith("slots/")} == {
        n for n in checkpoint.to_dict(plain) if n.startswith("slots/")
    }
    other.build(two())  # not packed
    restored(other, wrapped, tmp_path)
    same(checkpoint.to_dict(other), flat)
