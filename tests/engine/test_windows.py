"""Windows of accumulation beside NumPy in float64: weighted calls, windows that end early, scheduled lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

P = PartitionSpec
RATE = 0.1
SHAPES = {"w": (3, 2), "b": (2,), "s": (), "e": (0, 2)}
MANY = {f"a{i}": (3, 2) for i in range(9)}


def zeros(shapes=SHAPES, dtype="float32"):
    return {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}


def draw(n, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape).astype("float32") for name, shape in shapes.items()} for _ in range(n)]


class Adam:
    """Adam of Kingma & Ba with Keras's epsilon, over windows, in float64."""

    def __init__(self, shapes=SHAPES, rate=RATE):
        self.rate = rate
        self.p, self.m, self.v = ({n: np.zeros(s) for n, s in shapes.items()} for _ in range(3))
        self.t, self.window = 0, []

    def call(self, grads, weight=1.0, last=False):
        self.window.append((weight, grads))
        if last:
            self.end()

    def end(self):
        total = sum(w for w, _ in self.window)
        if total > 0:
            used = [(w, g) for w, g in self.window if w > 0]
            self.update({n: sum(w * np.asarray(g[n], float) for w, g in used) / total for n in self.p})
        self.window = []

    def update(self, g):
        self.t += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        for n in self.p:
            self.m[n] = 0.9 * self.m[n] + 0.1 * g[n]
            self.v[n] = 0.999 * self.v[n] + 0.001 * g[n] ** 2
            self.p[n] = self.p[n] - rate * self.m[n] / (np.sqrt(self.v[n]) + 1e-7)


def check(params, state, oracle, rtol=2e-5):
    assert int(state.count) == oracle.t
    for name, p in oracle.p.items():
        np.testing.assert_allclose(np.asarray(params[name], float), p, rtol=rtol, atol=1e-7)


FORMS = {
    "xla": {"engine": "xla"},
    "native": {},
    "packed": {"flat_state": True},
    "guard": {"skip_nonfinite": True, "skip_spikes": 1e6},
}


# --- weights


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_beside_numpy(form, shapes):
    """Token counts differ by a factor of a thousand; a call without tokens has the gradient NaN, and counts."""
    kernel = jk.adam(RATE, gradient_accumulation_steps=3, weighted_accumulation=True, **FORMS[form])
    params, oracle = zeros(shapes), Adam(shapes)
    state = kernel.init(params)
    weights = [1000, 1, 30, 0, 7.5, 0, 2, 2, 2, 0, 0, 0, 5, 0, 1]
    for i, (weight, grads) in enumerate(zip(weights, draw(len(weights), shapes), strict=True)):
        given = {n: g * np.nan for n, g in grads.items()} if weight == 0 else grads
        params, state = kernel.step(params, state, given, weight=weight)
        oracle.call(grads, weight, last=i % 3 == 2)
        check(params, state, oracle)
        assert int(state.scalars["micro_step"]) == (i + 1) % 3
    assert oracle.t == 4  # of five windows: one has no weight
    if form == "guard":
        assert int(state.scalars["skipped"]) == 0


def test_equal_weights_are_the_plain_mean():
    grads = draw(6)
    for weight in (1, 0.25, 4096):
        runs = []
        for options, given in (({}, {}), ({"weighted_accumulation": True}, {"weight": weight})):
            kernel, params = jk.adamw(RATE, gradient_accumulation_steps=3, global_clipnorm=0.5, **options), zeros()
            state = kernel.init(params)
            for g in grads:
                params, state = kernel.step(params, state, g, **given)
            runs.append(params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), *runs)


@pytest.mark.usefixtures("jax_defaults")
def test_update_and_jit_and_dtypes_take_weights():
    """Weights are arguments: other ones compile nothing. They may be arrays of any real dtype, traced or not."""
    kernel = jk.sgd(1.0, gradient_accumulation_steps=2, weighted_accumulation=True)
    params = {"w": jnp.zeros(2), "h": jnp.zeros(2, jnp.bfloat16), "c": jnp.zeros(2, jnp.complex64)}
    ones = jax.tree.map(jnp.ones_like, params)
    twos = jax.tree.map(lambda g: 4 * g, ones)
    for first, second in ((1, 3), (np.int32(1), 3.0), (jnp.int8(1), jnp.float16(3)), (True, jnp.bfloat16(3))):
        state = kernel.init(params)
        u, state = kernel.update(ones, state, params, weight=first)
        assert all(not np.any(x) for x in jax.tree.leaves(u))
        u, state = kernel.update(twos, state, params, weight=second)
        assert all(np.all(np.asarray(x) == -3.25) for x in jax.tree.leaves(u))
    assert kernel.compiled.update._cache_size() == 1

    @jax.jit
    def run(params, weights):
        def body(carry, x):
            return kernel.step(*carry, jax.tree.map(lambda g: x[0] * g, ones), weight=x[1]), None

        xs = jnp.array([1.0, 4.0]), weights
        return jax.lax.scan(body, (params, kernel.init(params)), xs)[0][0]

    assert np.asarray(run(params, jnp.array([1, 3]))["w"]).tolist() == [-3.25, -3.25]


def test_missing_and_sparse_gradients_are_weighed():
    kernel = jk.sgd(1.0, gradient_accumulation_steps=2, weighted_accumulation=True)
    params = {"w": jnp.zeros(2), "b": jnp.zeros(2), "t": jnp.zeros((3, 2))}
    rows = jk.IndexedSlices(jnp.ones((2, 2)), jnp.array([1, 1]), (3, 2))
    state = kernel.init(params)
    params, state = kernel.step(params, state, {"w": jnp.ones(2), "b": jnp.ones(2), "t": rows}, weight=3)
    params, state = kernel.step(params, state, {"w": jnp.ones(2), "b": None, "t": None}, weight=1)
    assert params["w"].tolist() == [-1, -1] and params["b"].tolist() == [-0.75, -0.75]
    assert params["t"].tolist() == [[0, 0], [-1.5, -1.5], [0, 0]]


class Told(jk.Rule):
    """p <- p - lr loss g."""

    takes = ("loss",)

    def update(self, g, p, s, at):
        return -at.lr * at.loss * g, s


def test_losses_are_weighed():
    kernel = jk.Kernel(Told(1.0), jk.Options(gradient_accumulation_steps=2, weighted_accumulation=True))
    params = {"w": jnp.zeros(2)}
    state = kernel.init(params)
    for loss, weight in ((1.0, 1), (3.0, 3)):
        params, state = kernel.step(params, state, {"w": jnp.ones(2)}, value=loss, weight=weight)
    assert params["w"].tolist() == [-2.5, -2.5]


@pytest.mark.parametrize("wrapped", ["loss_scaled", "partition", "guarded partition", "injected", "zero1"])
def test_weights_in_other_programs(wrapped):
    options = {"gradient_accumulation_steps": 2, "weighted_accumulation": True}
    kernel, scale = jk.adam(RATE, **options), 1.0
    if wrapped == "loss_scaled":
        kernel, scale = jk.loss_scaled(kernel, 4.0), 4.0
    elif wrapped == "partition":
        kernel = jk.partition({"b": jk.adam(RATE, **options)}, default=kernel)
    elif wrapped == "guarded partition":
        kernel = jk.partition({"b": kernel}, default=jk.adam(RATE, skip_nonfinite=True, **options))
    elif wrapped == "injected":
        kernel = jk.adam(RATE, inject_hyperparams=True, **options)
    else:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        kernel = jk.sharding.zero1(kernel, mesh, "data")
    params, oracle = zeros(), Adam()
    state = kernel.init(params)
    weights = [3, 1, 0, 2, 0, 0, 1, 0]
    for i, (weight, grads) in enumerate(zip(weights, draw(8), strict=True)):
        given = {n: np.float32(np.nan if weight == 0 else scale) * g for n, g in grads.items()}
        params, state = kernel.step(params, state, given, weight=weight)
        oracle.call(grads, weight, last=i % 2 == 1)
        check(params, state, oracle)
    if wrapped == "loss_scaled":
        assert float(state.scalars["dynamic_scale"]) == 4 and int(state.scalars["skipped"]) == 0


@pytest.mark.parametrize("wrap", [lambda kernel: kernel, jk.loss_scaled], ids=["plain", "loss_scaled"])
def test_weights_differ_by_device(wrap):
    """The result is the mean over all tokens of all devices and calls; a device may have none."""
    devices, calls = 4, 6
    options = {"axis_name": "data", "gradient_accumulation_steps": 3, "weighted_accumulation": True}
    kernel, plain = wrap(jk.adam(RATE, **options)), wrap is not jk.loss_scaled
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (calls, devices)).astype("float32")
    weights[1] = 0
    grads = [draw(devices, seed=i) for i in range(calls)]
    params, oracle = zeros(), Adam()
    state = kernel.init(params)

    def step(params, state, grads, weight):
        own = jax.tree.map(lambda x: x[0], grads)
        own = jax.tree.map(lambda g: jnp.where(weight[0] > 0, kernel.scale_loss(g, state), jnp.nan), own)
        return kernel.step(params, state, own, weight=weight[0])

    specs = {"in_specs": (P(), P(), P("data"), P("data")), "out_specs": P(), "check_vma": False}
    run = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
    for i in range(calls):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads[i])
        params, state = run(params, state, stacked, weights[i])
        for d in range(devices):
            oracle.call(grads[i][d], weights[i][d], last=d == devices - 1 and i % 3 == 2)
        check(params, state, oracle)
    assert plain or int(state.scalars["skipped"]) == 0


def test_weights_after_a_sum_that_jax_made():
    """`shard_map` with `check_vma=True` sums gradients itself: weights come too late, but a common total is right."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    kernel = jk.sgd(1.0, axis_name="data", gradient_accumulation_steps=2, weighted_accumulation=True)
    params, x = {"w": jnp.zeros(2)}, jnp.arange(4.0).reshape(4, 1)
    weights = jnp.array([1.0, 2.0, 0.0, 5.0])

    def late(params, state, x, weight):
        grads = jax.grad(lambda p: jnp.sum(x[0, 0] * p["w"]))(params)
        return kernel.step(params, state, grads, weight=weight[0])

    def early(params, state, x, weight):
        total = jax.lax.psum(weight[0], "data")
        grads = jax.grad(lambda p: weight[0] / total * jnp.sum(x[0, 0] * p["w"]))(params)
        return kernel.step(params, state, grads, weight=total)

    specs = {"in_specs": (P(), P(), P("data"), P("data")), "out_specs": P()}
    state = kernel.init(params)
    with pytest.raises(ValueError, match="summed already"):
        jax.shard_map(late, mesh=mesh, **specs)(params, state, x, weights)
    for _ in range(2):
        params, state = jax.jit(jax.shard_map(early, mesh=mesh, **specs))(params, state, x, weights)
    np.testing.assert_allclose(params["w"], -(2 + 15) / 8 * np.ones(2), rtol=1e-6)


def test_a_mapped_axis_of_vmap():
    kernel = jk.sgd(1.0, axis_name="i", gradient_accumulation_steps=2, weighted_accumulation=True)
    params = {"w": jnp.zeros(2)}
    state = kernel.init(params)

    def step(params, state, g, weight):
        return kernel.step(params, state, {"w": g}, weight=weight)

    run = jax.vmap(step, in_axes=(None, None, 0, 0), out_axes=None, axis_name="i")
    for _ in range(2):
        params, state = run(params, state, jnp.ones((3, 2)) * jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1, 0, 3]))
    np.testing.assert_allclose(params["w"], [-2.5, -2.5], rtol=1e-6)


PLAIN = optax.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state))


def test_weights_without_effect_are_refused():
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    for kernel, text in (
        (jk.sgd(1.0), "accumulates no gradients"),
        (jk.sgd(1.0, gradient_accumulation_steps=2), "weighs its calls alike"),
        (jk.partition({"w": jk.sgd(1.0)}, default=jk.sgd(1.0)), "accumulates no gradients"),
        (jk.Kernel.from_optax(PLAIN), "accumulates no gradients"),
    ):
        state = kernel.init(params)
        with pytest.raises(TypeError, match=f"`weight` is that of gradients.*{text}"):
            kernel.step(params, state, grads, weight=2)
        with pytest.raises(TypeError, match=text):
            kernel.update(grads, state, params, weight=2)
    w = jk.Variable([0.0, 0.0])
    for optimizer in (jk.SGD(1.0), jk.LossScaleOptimizer(jk.SGD(1.0)), jk.MultiOptimizer(jk.OptimizerMap(jk.SGD(1.0)))):
        for act in (
            lambda o: o.apply([[1.0, 1.0]], [w], weight=2),
            lambda o: o.apply_gradients([([1.0, 1.0], w)], flush=True),
            lambda o: o.minimize(lambda: jnp.sum(w.value), [w], weight=1),
        ):
            with pytest.raises(TypeError, match="`weight` is|`flush` ends"):
                act(optimizer)
        assert w.numpy().tolist() == [0, 0] and int(optimizer.iterations) == 0
    with pytest.raises(ValueError, match="`weighted_accumulation` weighs the calls"):
        jk.sgd(1.0, weighted_accumulation=True)


@pytest.mark.parametrize(
    ("weight", "error"),
    [(-1, ValueError), (np.nan, ValueError), (np.inf, ValueError), ([1, 2], TypeError), ("3", TypeError),
     (np.ones(2), ValueError), (jnp.ones(1), ValueError), (1j, ValueError)],
)  # fmt: skip
def test_weights_that_are_none(weight, error):
    kernel, params = jk.sgd(1.0, gradient_accumulation_steps=2, weighted_accumulation=True), {"w": jnp.zeros(2)}
    state = kernel.init(params)
    with pytest.raises(error, match="`weight` must be"):
        kernel.step(params, state, {"w": jnp.ones(2)}, weight=weight)
    with pytest.raises(ValueError, match="needs the weight of the gradients"):
        kernel.step(params, state, {"w": jnp.ones(2)})
    kernel.step(params, state, {"w": jnp.ones(2)}, weight=1)


# --- windows that end early


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("form", FORMS)
def test_flush_beside_numpy(form, shapes, weighted):
    options = {"weighted_accumulation": True} if weighted else {}
    kernel = jk.adam(RATE, gradient_accumulation_steps=4, **FORMS[form], **options)
    params, oracle = zeros(shapes), Adam(shapes)
    state, micro, programs = kernel.init(params), 0, kernel.compiled.step_donating._cache_size()
    for i, grads in enumerate(draw(14, shapes)):
        flush, weight = i in (0, 2, 7, 9, 13), 1 + i % 3 if weighted else 1
        last = flush or micro == 3
        given = {"weight": weight} if weighted else {}
        params, state = kernel.step(params, state, grads, flush=flush, **given)
        oracle.call(grads, weight, last)
        micro = 0 if last else micro + 1
        assert int(state.scalars["micro_step"]) == micro
        check(params, state, oracle)
    assert kernel.compiled.step_donating._cache_size() == programs + 1


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("form", FORMS)
def test_flush_without_gradients(form, shapes):
    """It uses what was accumulated; a second one moves and counts nothing, whatever the rest of the state."""
    kernel = jk.adam(RATE, gradient_accumulation_steps=4, **FORMS[form])
    params, oracle = zeros(shapes), Adam(shapes)
    state = kernel.init(params)
    params, state = kernel.flush(params, state)  # an empty window
    check(params, state, oracle)
    for i, grads in enumerate(draw(7, shapes)):
        params, state = kernel.step(params, state, grads)
        oracle.call(grads, last=i == 3)
    for _ in range(2):
        params, state = kernel.flush(params, state)
        oracle.end()
        check(params, state, oracle)
        assert int(state.scalars["micro_step"]) == 0
    assert oracle.t == 2


def test_flush_of_packed_parameters_and_of_frozen_leaves():
    kernel = jk.sgd(1.0, gradient_accumulation_steps=4)
    packed = jk.pack({f"a{i}": jnp.zeros(3) for i in range(9)})
    state = kernel.init(packed)
    packed, state = kernel.step(packed, state, {f"a{i}": jnp.ones(3) for i in range(9)})
    packed, state = kernel.flush(packed, state)
    assert all(np.all(np.asarray(x) == -1) for x in jax.tree.leaves(packed.unpack()))
    params = {"w": jnp.zeros(2), "n": jnp.int32(3), "none": None}
    state = kernel.init(params)
    params, state = kernel.step(params, state, {"w": jnp.ones(2), "n": None, "none": None})
    params, state = kernel.flush(params, state)
    assert params["w"].tolist() == [-1, -1] and int(params["n"]) == 3


BAD = {"plain": lambda k: k, "loss_scaled": jk.loss_scaled, "partition": lambda k: jk.partition({"b": k}, default=k)}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_last_call_ends_its_window(name, weighted):
    """A guard leaves its gradients out, and counts it; the window ends with those before it."""
    guards = {} if name == "loss_scaled" else {"skip_nonfinite": True}
    options = {"gradient_accumulation_steps": 4} | ({"weighted_accumulation": True} if weighted else {})
    kernel = BAD[name](jk.adam(RATE, **options, **guards))
    params, oracle, grads = zeros(), Adam(), draw(4)
    state = kernel.init(params)
    scale = lambda tree: jax.tree.map(lambda g: kernel.scale_loss(g, state), tree)
    bad = {n: jnp.full(s, jnp.inf) for n, s in SHAPES.items()}
    for i, flush in enumerate((False, False, True, True, False, True)):
        is_bad, weight = i in (2, 3, 4), i + 1
        given = {"weight": weight} if weighted else {}
        params, state = kernel.step(params, state, bad if is_bad else scale(grads[i % 4]), flush=flush, **given)
        if not is_bad:
            oracle.call(grads[i % 4], weight if weighted else 1)
        if flush:
            oracle.end()
        check(params, state, oracle)
    assert oracle.t == 2 and int(state.scalars["skipped"]) == 3


def test_flush_in_a_partition():
    """A group that accumulates no gradients steps as ever; without gradients it does not step."""
    kernel = jk.partition({"b": jk.sgd(1.0, gradient_accumulation_steps=4)}, default=jk.sgd(1.0))
    params, grads = {"w": jnp.zeros(2), "b": jnp.zeros(2)}, {"w": jnp.ones(2), "b": jnp.ones(2)}
    state = kernel.init(params)
    params, state = kernel.step(params, state, grads)
    params, state = kernel.step(params, state, grads, flush=True)
    assert params["w"].tolist() == [-2, -2] and params["b"].tolist() == [-1, -1]
    params, state = kernel.step(params, state, grads)
    params, state = kernel.flush(params, state)
    assert params["w"].tolist() == [-3, -3] and params["b"].tolist() == [-2, -2]
    assert int(state.scalars["b"]["step"]) == 2 and int(state.count) == 3


def test_flush_of_a_loss_scaled_kernel_is_no_call_of_the_loss():
    kernel, params = jk.loss_scaled(jk.sgd(1.0, gradient_accumulation_steps=4), 8.0), {"w": jnp.zeros(2)}
    state = kernel.init(params)
    params, state = kernel.step(params, state, {"w": jnp.full(2, 8.0)})
    params, state = kernel.flush(params, state)
    assert params["w"].tolist() == [-1, -1]
    assert int(state.scalars["step_counter"]) == 1 and float(state.scalars["dynamic_scale"]) == 8


def test_a_flush_leaves_the_guard_as_it_is():
    """Neither a flush nor a call without tokens says anything of the usual norm."""
    options = {"gradient_accumulation_steps": 4, "weighted_accumulation": True, "skip_spikes": 3.0}
    kernel, params = jk.sgd(1.0, **options), {"w": jnp.zeros(2)}
    state = kernel.init(params)
    params, state = kernel.step(params, state, {"w": jnp.array([3.0, 4.0])}, weight=1)
    params, state = kernel.step(params, state, {"w": jnp.full(2, jnp.nan)}, weight=0)
    params, state = kernel.flush(params, state)
    params, state = kernel.flush(params, state)
    assert float(state.scalars["usual_norm"]) == 5 and int(state.scalars["skipped"]) == 0
    assert params["w"].tolist() == [-3, -4]


def test_flush_is_traced_and_refused():
    kernel = jk.sgd(1.0, gradient_accumulation_steps=8)
    params, xs = jnp.zeros(()), jnp.arange(1.0, 6.0)

    @jax.jit
    def epoch(params, state):
        def body(carry, x):
            return kernel.step(*carry, x[0], flush=x[1]), None

        return jax.lax.scan(body, (params, state), (xs, jnp.arange(5) == 4))[0]

    params, state = epoch(params, kernel.init(params))
    assert float(params) == -3 and int(state.count) == 1
    for flush in (1, "yes", jnp.ones(2, bool), jnp.int32(1)):
        with pytest.raises(TypeError, match="`flush` must be"):
            kernel.step(params, state, xs[0], flush=flush)
    plain = jk.sgd(1.0)
    for call in (
        lambda: plain.step(params, plain.init(params), xs[0], flush=False),
        lambda: plain.flush(params, plain.init(params)),
        lambda: jk.SGD(1.0).flush(),
    ):
        with pytest.raises(TypeError, match="`flush` ends a window"):
            call()


# --- scheduled lengths


def grows(count):
    return jnp.where(count < 2, 1, jnp.where(count < 4, 3, 2))


LENGTHS = [1, 1, 3, 3, 2, 2, 2]


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("form", FORMS)
def test_scheduled_lengths_beside_numpy_and_optax(form):
    kernel = jk.adam(RATE, gradient_accumulation_steps=grows, **FORMS[form])
    params, oracle = zeros(), Adam()
    state, grads = kernel.init(params), iter(draw(sum(LENGTHS)))
    theirs = optax.MultiSteps(optax.adam(RATE, eps_root=0.0), grows)
    other, their_state = zeros(), theirs.init(zeros())
    for length in LENGTHS:
        for i in range(length):
            g = next(grads)
            params, state = kernel.step(params, state, g)
            oracle.call(g, last=i == length - 1)
            check(params, state, oracle)
            u, their_state = jax.jit(theirs.update)(jax.tree.map(jnp.asarray, g), their_state, other)
            other = optax.apply_updates(other, u)
            assert int(their_state.gradient_step) == int(state.count)
            assert int(their_state.mini_step) == int(state.scalars["micro_step"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), params, other)


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize(
    ("function", "lengths"),
    [
        (jk.schedules.PiecewiseConstantDecay([1], [2.0, 3.0]), [2, 2, 3]),
        (lambda count: 1.5 + count, [2, 3, 4]),
        (lambda count: 0 * count, [1, 1, 1]),
        (lambda count: jnp.nan * count, [1, 1, 1]),
        (lambda count: -3, [1, 1]),
    ],
)
def test_lengths_of_other_functions(function, lengths):
    kernel, params = jk.sgd(1.0, gradient_accumulation_steps=function), jnp.zeros(())
    state = kernel.init(params)
    for done, length in enumerate(lengths):
        for i in range(length):
            params, state = kernel.step(params, state, jnp.float32(1))
            assert int(state.count) == done + (i == length - 1)
    assert float(params) == -len(lengths)


@pytest.mark.parametrize(
    ("length", "error"),
    [(lambda: 3, TypeError), (lambda c: 3 if c > 2 else 2, TypeError), (lambda c: jnp.ones(2), TypeError),
     (lambda c: "3", TypeError), (int, TypeError)],
)  # fmt: skip
def test_lengths_that_are_none(length, error):
    with pytest.raises(error, match="gradient_accumulation_steps"):
        jk.sgd(1.0, gradient_accumulation_steps=length)


def test_schedules_of_calls_need_windows_of_one_length():
    with pytest.raises(ValueError, match="needs windows of one length"):
        jk.sgd(1.0, gradient_accumulation_steps=grows, schedule_counts="calls")


def test_a_scheduled_length_is_an_option_of_the_stateful_face():
    w, optimizer = jk.Variable(0.0), jk.SGD(1.0, gradient_accumulation_steps=grows)
    for length in LENGTHS[:4]:
        for _ in range(length):
            optimizer.apply([1.0], [w])
    assert int(optimizer.iterations) == 4 and float(w.numpy()) == -4
    with pytest.warns(UserWarning, match="`gradient_accumulation_steps` is a function"):
        assert optimizer.get_config()["gradient_accumulation_steps"] is None
    kept = jk.SGD(1.0, gradient_accumulation_steps=jk.schedules.PiecewiseConstantDecay([1], [2.0, 3.0]))
    again = jk.deserialize(jk.serialize(kept))
    assert again.gradient_accumulation_steps.get_config() == kept.gradient_accumulation_steps.get_config()
    optimizer.gradient_accumulation_steps = 2
    for _ in range(2):
        optimizer.apply([1.0], [w])
    assert float(w.numpy()) == -5


# --- the stateful face, checkpoints


WRAPS = {
    "plain": lambda o: o,
    "loss_scaled": lambda o: jk.LossScaleOptimizer(o, 1.0),
    "multi": lambda o: jk.MultiOptimizer(jk.OptimizerMap(o)),
}


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", WRAPS)
def test_the_stateful_face_beside_numpy(name, shapes):
    oracle, variables = Adam(shapes), {n: jk.Variable(np.zeros(s, "float32"), name=n) for n, s in shapes.items()}
    optimizer = WRAPS[name](jk.Adam(RATE, gradient_accumulation_steps=3, weighted_accumulation=True))
    with pytest.raises(ValueError, match="needs the weight"):
        optimizer.apply([np.ones(s, "float32") for s in shapes.values()], [*variables.values()])
    for i, g in enumerate(draw(8, shapes)):
        flush = None if i % 2 else i == 4
        optimizer.apply_gradients([(g[n], v) for n, v in variables.items()], weight=i, flush=flush)
        oracle.call(g, i, last=i in (2, 4, 7))
    optimizer.flush()
    last = draw(1, shapes, seed=9)[0]
    optimizer.apply([last[n] for n in variables], [*variables.values()], weight=jk.Variable(2.0))
    oracle.call(last, 2, last=True)
    assert int(optimizer.flush()) == int(optimizer.flush()) == oracle.t == 4
    for n, v in variables.items():
        np.testing.assert_allclose(v.numpy(), oracle.p[n], rtol=2e-5, atol=1e-7)


def test_minimize_and_stateless_apply():
    v, optimizer = jk.Variable([1.0, 2.0]), jk.SGD(1.0, gradient_accumulation_steps=4, weighted_accumulation=True)
    optimizer.minimize(lambda: jnp.sum(v.value), [v], weight=1)
    optimizer.minimize(lambda: 4 * jnp.sum(v.value), [v], weight=3, flush=True)
    assert v.numpy().tolist() == [-2.25, -1.25]

    @jax.jit
    def step(state, params, weight, flush):
        return optimizer.stateless_apply(state, [jnp.ones(2)], params, weight=weight, flush=flush)

    params, state = [jnp.zeros(2)], [x.value for x in optimizer.variables]
    params, state = step(state, params, 2, False)
    params, state = step(state, params, 2, True)
    assert params[0].tolist() == [-1, -1]


def test_a_class_that_overrides_apply_is_told():
    class Own(jk.SGD):
        def apply(self, grads, trainable_variables=None, **given):
            self.seen = given
            return super().apply(grads, trainable_variables, **given)

    w, optimizer = jk.Variable(0.0), Own(1.0, gradient_accumulation_steps=4, weighted_accumulation=True)
    optimizer.apply_gradients([(1.0, w)], weight=2, flush=True)
    assert optimizer.seen == {"weight": 2, "flush": True} and float(w.numpy()) == -1


def run(kernel, params, state, grads, **given):
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False, **given)
    return params, state


def test_files_keep_unfinished_windows():
    weighted = jk.adam(RATE, gradient_accumulation_steps=4, weighted_accumulation=True)
    plain, grads = jk.adam(RATE, gradient_accumulation_steps=4), draw(4)
    params = zeros()
    middle = run(weighted, params, weighted.init(params), grads[:2], weight=2)[1]
    flat = checkpoint.to_dict(middle)
    assert float(flat["scalars/weight_accumulator"]) == 4

    # The same kernel; weights of the calls before and after count alike.
    back = checkpoint.from_dict(weighted, params, flat)
    found, expected = (run(weighted, params, s, grads[2:], weight=1)[0] for s in (back, middle))
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    # Calls that had no weights weigh 1.
    unweighted = run(plain, params, plain.init(params), grads[:2])[1]
    back = checkpoint.from_dict(weighted, params, checkpoint.to_dict(unweighted))
    found, oracle = run(weighted, params, back, grads[2:], weight=3), Adam()
    for i, g in enumerate(grads):
        oracle.call(g, 1 if i < 2 else 3, last=i == 3)
    check(*found, oracle)

    # Without weights a weighted sum has no meaning: its window starts again.
    with pytest.warns(UserWarning, match="weight_accumulator"):
        back = checkpoint.from_dict(plain, params, flat)
    assert int(back.scalars["micro_step"]) == 0
    found, oracle = run(plain, params, back, grads), Adam()
    for i, g in enumerate(grads):
        oracle.call(g, last=i == 3)
    check(*found, oracle)

    # A window that is longer than the scheduled one starts again.
    scheduled = jk.adam(RATE, gradient_accumulation_steps=lambda count: 2)
    assert int(checkpoint.from_dict(scheduled, params, checkpoint.to_dict(unweighted)).scalars["micro_step"]) == 0


@pytest.mark.usefixtures("jax_defaults")
def test_optax_s_windows():
    weighted = jk.adam(RATE, gradient_accumulation_steps=4, weighted_accumulation=True, variant="optax")
    params, grads = {"w": jnp.zeros(2)}, [{"w": jnp.full(2, x)} for x in (1.0, 4.0)]
    theirs = optax.MultiSteps(optax.adam(RATE), 4)
    their_state = theirs.init(params)
    for g in grads:
        _, their_state = theirs.update(g, their_state, params)
    state = checkpoint.from_optax(weighted, params, their_state)
    assert float(state.scalars["weight_accumulator"]) == 2 and state.slots["gradient_accumulator"]["w"].tolist() == [
        5,
        5,
    ]
    back = checkpoint.to_optax(weighted, state, theirs.init(params))
    assert back.acc_grads["w"].tolist() == [2.5, 2.5] and int(back.mini_step) == 2
    state = weighted.init(params)
    for g, weight in zip(grads, (1, 3), strict=True):
        params, state = weighted.step(params, state, g, weight=weight, donate=False)
    assert checkpoint.to_optax(weighted, state, theirs.init(params)).acc_grads["w"].tolist() == [3.25, 3.25]


def test_keras_s_windows_have_one_length():
    params = {"w": jnp.zeros(2)}
    for options in ({"gradient_accumulation_steps": grows},
                    {"gradient_accumulation_steps": 2, "weighted_accumulation": True}):  # fmt: skip
        kernel = jk.adam(RATE, **options)
        with pytest.raises(ValueError, match="a fixed number of calls, without weights"):
            checkpoint.to_keras(kernel, kernel.init(params), params)


def test_a_transformation_of_optax():
    """Its own keywords reach it; a flush and a weight of ours do not."""
    seen = []

    def update(updates, state, params=None, *, weight=None, scale=1.0):
        seen.append(weight)
        return jax.tree.map(lambda g: -scale * g, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    kernel = jk.Kernel.from_optax(tx)
    kernel.step(params, kernel.init(params), grads, weight=3, donate=False)
    assert seen.pop() is not None
    kernel = jk.Kernel.from_optax(tx, gradient_accumulation_steps=4, weighted_accumulation=True)
    state = kernel.init(params)
    for g, weight, flush in ((1.0, 1, False), (4.0, 3, True)):
        given = {"weight": weight, "flush": flush, "scale": 2.0}
        params, state = kernel.step(params, state, {"w": jnp.full(2, g)}, **given)
    assert params["w"].tolist() == [-6.5, -6.5] and seen[-1] is None
