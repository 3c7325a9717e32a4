"""`own_counts`: each parameter counts its own updates, as torch does. Beside NumPy in float64, and training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxopt_keras as jk
from benchmarks.parity.peer import name_of
from jaxopt_keras import checkpoint
from jaxopt_keras.optimizers import FUNCTIONS, RULES
from tests.engine.test_windows import WRAPS

RATE = 0.1
SHAPES = {"w": (3, 2), "late": (2, 2), "rare": (4,), "s": (), "e": (0, 2)}
MANY = {f"a{i}": (3, 2) for i in range(9)} | {"late": (2, 2), "rare": (4,)}
FORMS = {
    "xla": {"engine": "xla"},
    "native": {},
    "packed": {"flat_state": True},
    "guard": {"skip_nonfinite": True, "global_clipnorm": 1e6},
    "ema": {"use_ema": True},
    "lazy": {"sparse": "lazy"},
}


def zeros(shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


class Torch:
    """torch.optim.Adam with one `step` for each parameter, in float64."""

    def __init__(self, shapes, rate=lambda count: RATE):
        self.rate, self.count = rate, 0
        self.p, self.m, self.v = ({n: np.zeros(s) for n, s in shapes.items()} for _ in range(3))
        self.step = dict.fromkeys(shapes, 0)

    def update(self, grads):
        for n, g in grads.items():
            if g is None:
                continue
            g = np.asarray(g, float)
            self.step[n] += 1
            t = self.step[n]
            self.m[n] = 0.9 * self.m[n] + 0.1 * g
            self.v[n] = 0.999 * self.v[n] + 0.001 * g**2
            root = np.sqrt(self.v[n]) / np.sqrt(1 - 0.999**t) + 1e-8
            self.p[n] = self.p[n] - self.rate(self.count) / (1 - 0.9**t) * self.m[n] / root
        self.count += 1


def draw(n, shapes, seed=0):
    """Gradients: `late` has none in the first four steps, `rare` in two of three."""
    rng = np.random.default_rng(seed)
    steps = [{k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()} for _ in range(n)]
    return [
        {k: None if (k == "late" and i < 4) or (k == "rare" and i % 3) else g for k, g in step.items()}
        for i, step in enumerate(steps)
    ]


def adam(**options):
    return jk.adam(options.pop("rate", RATE), epsilon=1e-8, variant="optax", **options)


def check(params, counts, torch):
    assert {n: int(c) for n, c in counts.items()} == torch.step
    for n, p in torch.p.items():
        np.testing.assert_allclose(np.asarray(params[n], float), p, rtol=2e-5, atol=1e-7)


def counts_of(state):
    slots = state.slots.unpack() if hasattr(state.slots, "unpack") else state.slots
    return slots["own_count"]


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("form", FORMS)
def test_beside_torch_s_numbers(form, shapes):
    kernel, params, torch = adam(own_counts=True, **FORMS[form]), zeros(shapes), Torch(shapes)
    state = kernel.init(params)
    for grads in draw(8, shapes):
        params, state = kernel.step(params, state, grads)
        torch.update(grads)
        check(params, counts_of(state), torch)
    assert int(state.count) == 8


def test_the_common_count_differs():
    """With the common count the first update of `late` at step 5 is half of torch's."""
    found = {}
    for own in (False, True):
        kernel, params = adam(own_counts=own), zeros(SHAPES)
        state = kernel.init(params)
        for grads in draw(5, SHAPES):
            params, state = kernel.step(params, state, grads)
        found[own] = np.abs(np.asarray(params["late"])).mean()
    np.testing.assert_allclose(found[True], RATE, rtol=1e-4)
    assert found[False] < 0.6 * RATE


@pytest.mark.usefixtures("jax_defaults")
def test_update_jit_and_schedules():
    """The rate follows the common count."""
    schedule = lambda count: 0.1 / (1 + count)
    kernel, params, torch = adam(rate=schedule, own_counts=True), zeros(SHAPES), Torch(SHAPES, schedule)
    state, run = kernel.init(params), jax.jit(kernel.update)
    for grads in draw(6, SHAPES):
        deltas, state = run(grads, state, params)
        params = {n: p if deltas[n] is None else p + deltas[n] for n, p in params.items()}
        torch.update(grads)
        check(params, counts_of(state), torch)


COUNTABLE = [n for n, rule in RULES.items() if rule().scalars() is None]


@pytest.mark.parametrize("name", COUNTABLE)
def test_a_late_parameter_is_trained_as_if_alone(name):
    """For every rule: also those whose first step differs from the others, and all modes of the count."""
    function = FUNCTIONS[name_of(RULES[name])]
    own, alone = function(own_counts=True), function()
    rng = np.random.default_rng(0)
    first = {n: jnp.asarray(rng.standard_normal((4, 3)), jnp.float32) for n in ("a", "b")}
    grads = [jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), first) for _ in range(7)]
    params, state = first, own.init(first)
    for i, g in enumerate(grads):
        params, state = own.step(params, state, g | ({"b": None} if i < 3 else {}), donate=False)
    single, state = {"b": first["b"]}, alone.init({"b": first["b"]})
    for g in grads[3:]:
        single, state = alone.step(single, state, {"b": g["b"]}, donate=False)
    np.testing.assert_allclose(params["b"], single["b"], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(own.averaged(params, own.init(first))["a"].shape, (4, 3))


STORED = [{"state_dtype": "int8"}, {"master_weights": "bf16+16"}, {"state_dtype": "bfloat16"}]


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_counts_are_exact_in_every_storage(stored):
    kernel, params = adam(own_counts=True, **stored), {"w": jnp.zeros((64, 64), jnp.bfloat16), "late": jnp.zeros(3)}
    state = kernel.init(params)
    state = state._replace(slots=state.slots | {"own_count": {"w": jnp.int32(2**24 + 1), "late": jnp.int32(2**31 - 1)}})
    for _ in range(2):
        params, state = kernel.step(params, state, jax.tree.map(jnp.ones_like, params))
    assert {n: int(x) for n, x in state.slots["own_count"].items()} == {"w": 2**24 + 3, "late": 2**31 - 1}
    assert all(np.all(np.isfinite(np.asarray(p, float))) for p in params.values())


def test_in_windows():
    """A parameter counts an update if one call of its window had a gradient."""
    kernel, params = adam(own_counts=True, gradient_accumulation_steps=2), zeros(SHAPES)
    state, torch, window = kernel.init(params), Torch(SHAPES), []
    for i, grads in enumerate(draw(12, SHAPES)):
        params, state = kernel.step(params, state, grads)
        window.append(grads)
        if i % 2:
            total = {n: [g[n] for g in window if g[n] is not None] for n in SHAPES}
            torch.update({n: sum(np.asarray(g, float) for g in own) / 2 if own else None for n, own in total.items()})
            window = []
        counts = counts_of(state)
        assert {n: int(c) for n, c in counts.items() if n != "e"} == {n: t for n, t in torch.step.items() if n != "e"}
    for n in SHAPES:
        np.testing.assert_allclose(params[n], torch.p[n], rtol=2e-5, atol=1e-7)


def test_in_other_programs():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for wrap, scale in (
        (lambda k: jk.loss_scaled(k, 8.0), 8.0),
        (lambda k: jk.partition({"w|late": k}, default=adam(own_counts=True)), 1.0),
        (lambda k: jk.sharding.zero1(k, mesh), 1.0),
    ):
        kernel, params, torch = wrap(adam(own_counts=True)), zeros(SHAPES), Torch(SHAPES)
        state = kernel.init(params)
        for grads in draw(7, SHAPES):
            scaled = {n: None if g is None else np.float32(scale) * g for n, g in grads.items()}
            params, state = kernel.step(params, state, scaled)
            torch.update(grads)
        check(params, counts_of(state), torch)


def test_packed_parameters_are_unpacked():
    kernel, shapes = adam(own_counts=True), {f"a{i}": (3,) for i in range(9)}
    packed = jk.pack(zeros(shapes))
    assert "each array counts its own updates" in kernel.describe(packed).notes[0]
    assert "own_count int32" in kernel.describe(zeros(shapes)).groups[0].kind.slots
    state, grads = kernel.init(packed), {n: jnp.ones(s) for n, s in shapes.items()}
    for i in range(3):
        packed, state = kernel.step(packed, state, grads if i else grads | {"a0": jnp.zeros(3)})
    assert {int(x) for x in jax.tree.leaves(state.slots["own_count"])} == {3}


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_stateful_face(name, shapes):
    """`late` is registered by the first step that has it."""
    optimizer = WRAPS[name](jk.Adam(RATE, epsilon=1e-8, variant="optax", own_counts=True))
    variables, torch = {n: jk.Variable(np.zeros(s, "float32"), name=n) for n, s in shapes.items()}, Torch(shapes)
    for i, grads in enumerate(draw(8, shapes)):
        given = [(grads[n], v) for n, v in variables.items() if n != "late" or i >= 4]
        optimizer.apply_gradients(given)
        torch.update(grads)
    counts = {n: optimizer.get_slot(v, "own_count").numpy() for n, v in variables.items()}
    check({n: v.numpy() for n, v in variables.items()}, counts, torch)


def test_the_option_is_set_later():
    """Trained variables keep the common count; from then on each counts its own."""
    w, b, optimizer = jk.Variable([0.0, 0.0], name="w"), jk.Variable([0.0], name="b"), jk.Adam(RATE)
    for _ in range(3):
        optimizer.apply([[1.0, 1.0], [1.0]], [w, b])
    optimizer.own_counts = True
    optimizer.apply([[1.0, 1.0]], [w])
    assert [int(optimizer.get_slot(v, "own_count").numpy()) for v in (w, b)] == [4, 3]
    late = jk.Variable([0.0], name="late")
    optimizer.apply([[1.0], [1.0]], [b, late])
    assert [int(optimizer.get_slot(v, "own_count").numpy()) for v in (w, b, late)] == [4, 4, 1]
    np.testing.assert_allclose(late.numpy(), [-RATE], rtol=1e-4)
    assert jk.deserialize(jk.serialize(optimizer)).own_counts is True
    optimizer.own_counts = False
    optimizer.apply([[1.0]], [late])
    assert "own_count" not in optimizer.get_slot_names()


def test_files():
    own, common, params = adam(own_counts=True), adam(), zeros(SHAPES)
    state = own.init(params)
    p = params
    for grads in draw(6, SHAPES):
        p, state = own.step(p, state, grads, donate=False)
    flat = checkpoint.to_dict(state)
    assert {n: int(flat[f"slots/{n}/own_count"]) for n in ("w", "late", "rare")} == {"w": 6, "late": 2, "rare": 2}
    back = checkpoint.from_dict(own, params, flat)
    jax.tree.map(np.testing.assert_array_equal, back.slots, state.slots)

    # A new parameter starts at 0.
    more = params | {"new": jnp.zeros(2)}
    with pytest.warns(UserWarning, match="slots/new"):
        joined = checkpoint.from_dict(own, more, flat)
    assert int(joined.slots["own_count"]["new"]) == 0 and int(joined.slots["own_count"]["late"]) == 2

    # Those that had a common count go on with it.
    shared = common.init(params)
    for grads in draw(5, SHAPES):
        _, shared = common.step(params, shared, grads, donate=False)
    counts = checkpoint.from_dict(own, params, checkpoint.to_dict(shared)).slots["own_count"]
    assert {int(c) for c in counts.values()} == {5}
    with pytest.warns(UserWarning, match="own_count"):
        assert int(checkpoint.from_dict(common, params, flat).count) == 6

    # Groups have counts in common, too.
    groups = jk.partition({"w": common}, default=adam(gradient_accumulation_steps=2))
    counting = jk.partition({"w": own}, default=adam(own_counts=True, gradient_accumulation_steps=2))
    kept = groups.init(params)
    for _ in range(6):
        _, kept = groups.step(params, kept, {n: jnp.ones(s) for n, s in SHAPES.items()}, donate=False)
    counts = checkpoint.from_dict(counting, params, checkpoint.to_dict(kept)).slots["own_count"]
    assert {n: int(c) for n, c in counts.items()} == dict.fromkeys(SHAPES, 3) | {"w": 6}


def test_torch_s_state_dict():
    params = {"w": jnp.zeros(2), "b": jnp.zeros(2)}
    moments = lambda n: {"step": np.float32(n), "exp_avg": np.ones(2, "f"), "exp_avg_sq": np.ones(2, "f")}
    given = {"state": {0: moments(7), 1: moments(3)}, "param_groups": [{"params": [0, 1]}]}
    state = checkpoint.from_torch(adam(own_counts=True), params, given, ["w", "b"])
    assert {n: int(c) for n, c in state.slots["own_count"].items()} == {"w": 7, "b": 3} and int(state.count) == 7
    with pytest.warns(UserWarning, match="`own_counts=True` the kernel counts as torch does"):
        checkpoint.from_torch(adam(), params, given, ["w", "b"])


def test_what_has_no_own_counts_is_refused():
    with pytest.raises(ValueError, match="`own_counts` needs a rule without numbers for all arrays.*u_product"):
        jk.nadam(own_counts=True)
    with pytest.raises(ValueError, match="`own_counts`"):
        jk.prodigy(own_counts=True)
    with pytest.raises(TypeError, match="`own_counts` needs a `Rule`"):
        jk.Kernel.from_optax(optax.adam(0.1), own_counts=True)

    class Hooked(jk.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(learning_rate * gradient)

    with pytest.raises(TypeError, match="`own_counts` needs a `Rule`"):
        Hooked(0.1, own_counts=True).apply([[1.0]], [jk.Variable([1.0])])
    with pytest.raises(TypeError, match="`own_counts` must be True or False"):
        jk.adam(own_counts=3)
