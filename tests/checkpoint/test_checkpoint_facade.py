"""The stateful face: the same names as the pure one's, into any optimizer, all or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

SHAPES = {"embed": (64, 80), "dense/kernel": (8, 4), "dense/bias": (4,), "scale": ()}
RNG = np.random.default_rng(0)
VALUES = {n: RNG.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
GRADS = [{n: jnp.asarray(RNG.normal(size=s), jnp.float32) for n, s in SHAPES.items()} for _ in range(4)]
GROUPS = lambda: jk.OptimizerMap(jk.AdamW(0.01), {"dense/.*": jk.Adam(0.01, skip_nonfinite=True)})
MAKERS = {
    "plain": lambda: jk.AdamW(0.01),
    "schedule": lambda: jk.AdamW(jk.schedules.CosineDecay(0.01, 100)),
    "ema and window": lambda: jk.Adam(0.01, use_ema=True, gradient_accumulation_steps=3, skip_nonfinite=True),
    "int8": lambda: jk.AdamW(0.01, state_dtype="int8"),
    "groups": lambda: jk.MultiOptimizer(GROUPS()),
    "loss scale": lambda: jk.LossScaleOptimizer(jk.Adam(0.01, skip_spikes=50.0), 1.0),
    "loss scale of groups": lambda: jk.LossScaleOptimizer(jk.MultiOptimizer(GROUPS()), 1.0),
    "nadam": lambda: jk.Nadam(0.01),
    "packed": lambda: jk.AdamW(0.01),
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
anything = pytest.mark.filterwarnings("ignore:The checkpoint differs")


class Trained:
    """An optimizer with variables of its own."""

    def __init__(self, kind, steps=0):
        self.variables = {n: jk.Variable(x, name=n) for n, x in VALUES.items()}
        self.given = jk.pack_variables(list(self.variables.values())) if kind == "packed" else None
        self.optimizer = MAKERS[kind]()
        self.optimizer.build(self.given or list(self.variables.values()))
        for g in GRADS[:steps]:
            self.step(g)

    def step(self, grads):
        if self.given:
            (buffer,) = self.given
            grads = [jnp.concatenate([grads[v.path].reshape(-1) for v in buffer.variables])]
            self.optimizer.apply_gradients(zip(grads, self.given, strict=True))
        else:
            self.optimizer.apply_gradients((grads[n], v) for n, v in self.variables.items())

    def everything(self):
        return [np.array(v) for v in self.optimizer.variables], [v.numpy() for v in self.variables.values()]


def slots(optimizer, part="slots/"):
    return {n: x for n, x in checkpoint.to_dict(optimizer, portable=True).items() if n.startswith(part)}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


@every_kind
def test_the_same_again(kind, tmp_path):
    """Also into one that has gone on: nothing of that is left."""
    path, one = tmp_path / "a.safetensors", Trained(kind, 2)
    checkpoint.save(path, one.optimizer)
    for other in (Trained(kind), Trained(kind, 4)):
        for n, v in one.variables.items():
            other.variables[n].assign(v.value)
        assert checkpoint.load(path, other.optimizer) is None
        for a, b in zip(one.everything()[0], other.everything()[0], strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
        other.step(GRADS[2])
    one.step(GRADS[2])
    for a, b in zip(one.everything()[1], other.everything()[1], strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@anything
@every_kind
def test_adamw_into(kind, tmp_path):
    path, one, other = tmp_path / "a.safetensors", Trained("plain", 2), Trained(kind, 4)
    for n, v in other.variables.items():
        v.assign(VALUES[n])
    checkpoint.save(path, one.optimizer)
    checkpoint.load(path, other.optimizer)
    expected, found = slots(one.optimizer), slots(other.optimizer)
    assert expected.keys() <= found.keys()
    for name, x in expected.items():
        if kind != "int8" or x.size < 4096:
            np.testing.assert_array_equal(found[name], x, strict=True)
    assert int(other.optimizer.iterations) == 2
    for n in (n for n in other.variables if f"slots/{n}/average" in found):  # fresh, and not those of its own past
        np.testing.assert_array_equal(found[f"slots/{n}/average"], VALUES[n])
    other.step(GRADS[2])
    checkpoint.save(path, other.optimizer)
    checkpoint.load(path, one.optimizer)
    found = slots(other.optimizer)
    same({n: found[n] for n in expected}, slots(one.optimizer))
    assert int(one.optimizer.iterations) == int(other.optimizer.iterations)


@anything
def test_both_faces_have_the_same_names():
    """So a state of one goes to the other."""
    tree = {"embed": VALUES["embed"], "dense": {n: VALUES[f"dense/{n}"] for n in ("kernel", "bias")}}
    params = jax.tree.map(jnp.asarray, tree | {"scale": VALUES["scale"]})
    for kind, kernel in {
        "plain": jk.adamw(0.01),
        "groups": jk.partition({"dense": jk.adam(0.01)}, default=jk.adamw(0.01)),
        "packed": jk.adamw(0.01),
    }.items():
        saved = checkpoint.to_dict(Trained(kind, 2).optimizer)
        state = checkpoint.from_dict(kernel, params, saved)
        assert {n for n in saved if "slots" in n} == {n for n in checkpoint.to_dict(state) if "slots" in n}
        np.testing.assert_array_equal(state.slots["velocity"]["dense"]["bias"], saved["slots/dense/bias/velocity"])
        assert int(state.count) == 2


@every_kind
def test_all_or_nothing(kind, tmp_path):
    path, one = tmp_path / "a.safetensors", Trained(kind, 2)
    saved = checkpoint.to_dict(one.optimizer)
    name = next(n for n in saved if n.startswith("slots/scale/velocity"))
    from jaxopt_keras.checkpoint import files

    before = one.everything()
    for bad, match in [
        (saved | {name: np.ones((2, 2), np.float32)}, "must have the shape"),
        ({"format": np.int32(1), "slots/x/velocity": np.ones(3)}, "Nothing in this checkpoint fits"),
        (saved | {"format": np.int32(9)}, "at most 1"),
    ]:
        files.write(path, bad)
        with pytest.raises(ValueError, match=match):
            checkpoint.load(path, one.optimizer)
        jax.tree.map(np.testing.assert_array_equal, before, one.everything())


def test_unbuilt_is_refused(tmp_path):
    for optimizer in (jk.AdamW(), jk.MultiOptimizer(GROUPS()), jk.LossScaleOptimizer(jk.SGD())):
        with pytest.raises(ValueError, match="must be built"):
            checkpoint.save(tmp_path / "a.safetensors", optimizer)


def test_parameters_are_refused():
    """It has its own."""
    with pytest.raises(TypeError, match="`params` must be left out for an `Optimizer`.*params=dict.*`load_params"):
        checkpoint.load("none.safetensors", Trained("plain").optimizer, VALUES)


def test_variables_of_one_name_are_told_apart(tmp_path):
    variables = [jk.Variable(jnp.full(2, float(i)), name="w") for i in range(3)]
    optimizer = jk.SGD(0.1, momentum=0.9)
    optimizer.apply([v.value for v in variables], variables)
    found = slots(optimizer)
    assert list(found) == ["slots/w/momentum", "slots/w_1/momentum", "slots/w_2/momentum"]
    checkpoint.save(tmp_path / "a.safetensors", optimizer)
    checkpoint.load(tmp_path / "a.safetensors", optimizer)
    same(found, slots(optimizer))


def test_custom_optimizers(tmp_path):
    """Slots that hooks made, and variables."""

    class Mine(jk.Optimizer):
        def build(self, variables):
            super().build(variables)
            if not hasattr(self, "kept"):
                self.kept = [self.add_variable_from_reference(v, name="kept") for v in variables]

        def update_step(self, gradient, variable, learning_rate):
            kept = self.kept[self._get_variable_index(variable)]
            kept.assign(kept + gradient)
            variable.assign_sub(learning_rate * kept)

    one, other = ((Mine(0.1), jk.Variable(jnp.ones(2), name="w")) for _ in range(2))
    one[0].apply([jnp.ones(2)], [one[1]])
    checkpoint.save(tmp_path / "a.safetensors", one[0])
    other[0].build([other[1]])
    checkpoint.load(tmp_path / "a.safetensors", other[0])
    assert np.array(other[0].kept[0]).tolist() == [1.0, 1.0] and int(other[0].iterations) == 1


def test_the_rate_is_the_optimizers_own_unless_asked_for(tmp_path):
    path, one, other = tmp_path / "a.safetensors", Trained("plain", 1), Trained("plain")
    one.optimizer.learning_rate = 0.5
    checkpoint.save(path, one.optimizer)
    with pytest.warns(UserWarning, match="other numbers, which are not restored"):
        checkpoint.load(path, other.optimizer)
    assert float(other.optimizer.learning_rate) == np.float32(0.01)
    checkpoint.load(path, other.optimizer, hyper=True)
    assert float(other.optimizer.learning_rate) == 0.5


# --- a model that is made anew --------------------------------------------------------------------------------------


def momenta(shapes, seed=None):
    """An SGD over variables of these names and shapes, and its momenta; with a `seed`, after a step."""
    variables = [jk.Variable(np.zeros(shape, np.float32), name=name) for name, shape in shapes.items()]
    optimizer = jk.SGD(0.5, momentum=0.9)
    optimizer.build(variables)
    if seed is not None:
        rng = np.random.default_rng(seed)
        optimizer.apply([jnp.asarray(rng.normal(size=v.shape), jnp.float32) for v in variables], variables)
    return optimizer, {
        name: optimizer.get_slot(v, "momentum").numpy() for name, v in zip(shapes, variables, strict=True)
    }


SAVED = {"net/dense_9/kernel": (2, 2), "net/dense_10/kernel": (2, 2), "head/w": (3,)}


@pytest.mark.parametrize("backwards", [False, True])
def test_other_counters_in_the_names(tmp_path, backwards):
    """Wherever they stand: what was counted first is first (9 before 10), whatever the order of the variables."""
    path, names = tmp_path / "a.safetensors", list(SAVED)[:: -1 if backwards else 1]
    saved, expected = momenta({name: SAVED[name] for name in names}, seed=0)
    checkpoint.save(path, saved)
    names = ["net_1/dense_11/kernel", "net_1/dense_12/kernel", "head_7/w"]
    anew, _ = momenta(dict(zip(names, SAVED.values(), strict=True)))
    checkpoint.load(path, anew)
    for name, x in zip(anew._paths, SAVED, strict=True):
        np.testing.assert_array_equal(anew._state.slots["momentum"][name], expected[x])


@pytest.mark.parametrize(
    "names",
    [
        ["net_1/dense_11/kernel", "net_1/dense_12/kernel", "other/w"],  # another name
        ["net_1/dense_11/kernel", "net_1/conv_12/kernel", "head_1/w"],
        ["net_1/dense_11/kernel", "net_1/dense_12/kernel"],  # fewer
    ],
)
def test_other_names_are_refused(tmp_path, names):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, momenta(SAVED, seed=0)[0])
    anew, _ = momenta(dict(zip(names, SAVED.values(), strict=False)))
    with pytest.raises(ValueError, match="Nothing in this checkpoint fits .* automatic counters"):
        checkpoint.load(path, anew)


@anything
def test_a_name_that_is_found_says_more_than_its_counter(tmp_path):
    path = tmp_path / "a.safetensors"
    saved, expected = momenta({"block_1/w": (3,), "block_2/w": (3,)}, seed=0)
    checkpoint.save(path, saved)
    other, _ = momenta({"block_2/w": (3,), "block_3/w": (3,)})
    checkpoint.load(path, other)
    np.testing.assert_array_equal(other._state.slots["momentum"]["block_2/w"], expected["block_2/w"])
    np.testing.assert_array_equal(other._state.slots["momentum"]["block_3/w"], np.zeros(3))
