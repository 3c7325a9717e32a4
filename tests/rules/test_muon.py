"""Muon on any matrices, by any iteration. The parity tests compare its usual form, and its kin, with float64 NumPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import _muon as optax_muon
from sklearn.datasets import load_digits

import jaxopt_keras as jk
from jaxopt_keras import rules
from jaxopt_keras.engine.cores import stacked
from jaxopt_keras.language.matrices import view
from jaxopt_keras.rules.orthogonal.coefficients import KELLER, TABLES
from jaxopt_keras.rules.orthogonal.iteration import Arithmetic, gram_newton_schulz, gram_saves, newton_schulz

RNG = np.random.default_rng(0)
WIDE, TALL = RNG.normal(size=(4, 20)), RNG.normal(size=(9, 5))
TIGHT = 1e-12


def polynomial(u, steps, norm):
    """The iteration on singular values, each a number."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / norm(s)
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return left * s @ right


def orthogonal(u, **settings):
    return np.asarray(rules.Muon(**settings).whole(jnp.asarray(u)))


FROBENIUS = lambda s: np.sqrt(np.sum(s**2)) + 1e-7
NORMS = {
    "frobenius": FROBENIUS,
    "schatten": lambda s: FROBENIUS(s) * np.sum((s / FROBENIUS(s)) ** 4) ** 0.25,
    "spectral": lambda s: s[0],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_and_the_gram_form(name, gram):
    table = TABLES[name]
    norm = FROBENIUS if table.epsilon is None else lambda s: table.safety * np.sqrt(np.sum(s**2)) + table.epsilon
    for u in (WIDE, TALL):
        for count in (len(table.rows), 9):
            expected = polynomial(u, table.steps(count), norm)
            found = orthogonal(u, iteration=name, ns_steps=count, gram=gram)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TIGHT * max(1, np.abs(expected).max()))


SHORT = {"turbo_flash": (4, 0.01, 0.98), "turbo_emerging": (4, 0.01, 0.85)}  # after the rows were divided
LONG = {"deepseek_v4": (10, 0.01, 0.98), "polar_express_raw": (8, 0.001, 0.98), "polar_express_paper": (8, 0.001, 0.98)}


@pytest.mark.parametrize("name", TABLES)
def test_tables_bring_singular_values_near_one(name):
    steps, low, high = (SHORT | LONG).get(name, (5, 0.01, 0.98))
    s = np.linspace(low, high, 50)
    for a, b, c in TABLES[name].steps(steps):
        s = a * s + b * s**3 + c * s**5
    assert 0.65 < s.min() and s.max() < 1.35, (s.min(), s.max())


def test_the_tables_that_optax_has_too():
    assert TABLES["quintic"].rows == tuple(optax_muon._NS_COEFFS_PRESET_DICT["dion"])
    assert TABLES["keller"].rows == (optax_muon._NS_COEFFS_PRESET_DICT["standard"],)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("normalization", NORMS)
def test_normalizations(normalization, gram):
    for u in (WIDE, TALL, 1e20 * WIDE):
        expected = polynomial(u, [KELLER] * 5, NORMS[normalization])
        np.testing.assert_allclose(orthogonal(u, normalization=normalization, gram=gram), expected, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("x64", "jax_defaults")
@pytest.mark.parametrize("normalization", ["aol", "schatten"])
def test_normalizations_as_in_optax(normalization):
    for u in (WIDE, TALL):
        coefficients = jnp.asarray([KELLER] * 5)
        theirs = optax_muon.orthogonalize_via_newton_schulz(
            jnp.asarray(u), coefficients, preconditioning=normalization, eps=1e-30
        )
        np.testing.assert_allclose(orthogonal(u, normalization=normalization), theirs, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_a_list_and_a_function():
    steps = [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)]
    np.testing.assert_allclose(orthogonal(TALL, iteration=steps), polynomial(TALL, steps, FROBENIUS), atol=TIGHT)

    def exactly(x):
        left, _, right = jnp.linalg.svd(x, full_matrices=False)
        return left @ right

    np.testing.assert_allclose(orthogonal(TALL, iteration=exactly), polynomial(TALL, [], lambda s: s), atol=TIGHT)


def test_gram_saves_where_it_is_taken():
    """Counted in multiplications of the traced program."""

    def multiplications(function, rows, columns):
        jaxpr = jax.make_jaxpr(lambda x: function(x, [KELLER] * 5, Arithmetic()))(jnp.ones((rows, columns)))
        products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        return sum(e.invars[0].aval.shape[1] * e.outvars[0].aval.size for e in products)

    for rows, columns in ((16, 16), (16, 32), (16, 48), (16, 64), (16, 160)):
        saves = multiplications(gram_newton_schulz, rows, columns) < multiplications(newton_schulz, rows, columns)
        assert gram_saves(rows, columns, 5) == saves, (rows, columns)
    assert gram_saves(16, 64, 5) and not gram_saves(16, 16, 5)


@pytest.mark.parametrize("make", [jk.muon, jk.normuon, jk.adamuon])
def test_a_step_multiplies_little_more_than_its_iteration(make):
    shapes = {"square": (128, 128), "wide": (128, 512), "tall": (512, 128)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    kernel = make(0.1)
    compiled = jax.jit(kernel.step).lower(params, kernel.init(params), params).compile()
    own = sum(5 * 2 * (2 * min(s) ** 2 * max(s) + min(s) ** 3) for s in shapes.values())
    assert own <= compiled.cost_analysis()["flops"] <= 1.05 * own


@pytest.mark.parametrize("make", [jk.muon, jk.normuon, jk.adamuon, jk.dion2])
@pytest.mark.parametrize("branch", ["cpu", "others"])
def test_temporaries_are_at_most_two_stacks(make, branch, monkeypatch):
    if branch == "others":  # what GPUs run, compiled here
        monkeypatch.setattr(stacked, "_one_by_one", stacked._at_once)
        monkeypatch.setattr(stacked, "BUSY", 16 * 32 * 48)
    few = {
        "square": [(64, 64)] * 16,
        "layers": [(64, 192), (64, 64), (64, 256), (256, 64)] * 4,
        "four": [(96, 128)] * 4,
    }
    many = {"many": [(32, 48)] * 70}
    for shapes in (few if branch == "cpu" else many).values():
        params = {f"w{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i, shape in enumerate(shapes)}
        kernel = make(0.1, momentum=0.9)  # another program than that of other tests
        state = kernel.init(params)
        step = jax.jit(lambda *x, kernel=kernel: kernel.step(*x), donate_argnums=(0, 1))
        found = step.lower(params, state, params).compile().memory_analysis().temp_size_in_bytes
        stack, vectors = (
            4 * sum(size(*shape) for shape in shapes) for size in (lambda n, m: n * m, lambda n, m: n + m)
        )
        assert found <= 2 * stack + vectors, (shapes[0], found / stack)


@pytest.mark.parametrize("branch", [stacked._one_by_one, stacked._at_once])
@pytest.mark.parametrize("counts", [(1,), (2, 1), (4,), (3, 2, 2), (1,) * 18, (30, 40), (71,)])
def test_rounds_compute_every_matrix_once(branch, counts, monkeypatch):
    monkeypatch.setattr(stacked, "BUSY", 16 * 3 * 5)
    stacks = [jnp.asarray(RNG.normal(size=(n, 3, 5)), jnp.float32) for n in counts]
    # The second result has the place of the matrices, the others have places of their own.
    whole = lambda a, x: (jnp.sum(x * x, 0), a * x / jnp.sum(x * x), x)
    found = branch(whole, jnp.float32(3), stacks)
    for x, (sums, y, same) in zip(stacks, found, strict=True):
        np.testing.assert_allclose(sums, jnp.sum(x * x, 1), rtol=1e-6)
        np.testing.assert_allclose(y, 3 * x / jnp.sum(x * x, (1, 2), keepdims=True), rtol=1e-6)
        np.testing.assert_array_equal(same, x)


def test_precision():
    u = RNG.normal(size=(32, 96)).astype("float32")
    full, half, here = (orthogonal(u, precision=p, ns_steps=5) for p in ("float32", "bfloat16", "device"))
    assert full.tobytes() == here.tobytes()  # on a CPU
    assert 1e-4 < np.abs(half - full).max() < 0.05 and half.dtype == np.float32
    s = np.linalg.svd(half, compute_uv=False)
    assert 0.6 < s.min() and s.max() < 1.3
    text = str(jax.make_jaxpr(lambda x: rules.Muon(precision="bfloat16").whole(x))(u))
    assert "preferred_element_type=float32" in text and "bf16[32,32]" in text


# --- shapes

VIEWS = {
    "layers of a scan": ((3, 4, 6), "batch rows columns", lambda x: list(x)),
    "experts in layers": ((2, 3, 4, 6), "batch... rows columns", lambda x: list(x.reshape(6, 4, 6))),
    "heads": ((4, 3, 5), "rows batch columns", lambda x: [x[:, i] for i in range(3)]),
    "heads of an output": ((3, 5, 4), "batch rows columns", lambda x: list(x)),
    "a fused array": ((4, 15), "rows (batch=3 columns)", lambda x: [x[:, i : i + 5] for i in (0, 5, 10)]),
    "heads last": ((4, 15), "rows (columns batch=3)", lambda x: [x[:, i::3] for i in range(3)]),
    "all heads as one": ((4, 3, 5), "rows columns columns", lambda x: [x.reshape(4, 15)]),
    "a convolution": ((3, 3, 2, 5), "rows... columns", lambda x: [x.reshape(18, 5)]),
}


KIN = [(name, make) for name in ("heads", "a fused array") for make in (jk.normuon, jk.adamuon, jk.dion2)]


@pytest.mark.parametrize("name, make", [(name, jk.muon) for name in VIEWS] + KIN)
def test_each_matrix_is_updated_as_if_it_were_alone(name, make):
    shape, text, parts = VIEWS[name]
    p, grads = RNG.normal(size=shape).astype("float32"), RNG.normal(size=(2, *shape)).astype("float32")
    kernels = make(0.1, matrices={"whole": text}), make(0.1)
    trees = {"whole": jnp.asarray(p)}, dict(enumerate(map(jnp.asarray, parts(p))))
    ends = []
    for kernel, tree, split in zip(
        kernels, trees, (lambda x: {"whole": x}, lambda x: dict(enumerate(parts(x)))), strict=True
    ):
        state = kernel.init(tree)
        for g in grads:
            tree, state = kernel.step(tree, state, split(jnp.asarray(g)))
        ends.append(tree)
    for x, y in zip(parts(ends[0]["whole"]), ends[1].values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6)


def test_a_function_of_path_and_shape():
    def seen(path, shape):
        return None if "head" in path else "batch... rows columns" if len(shape) >= 2 else None

    kernel, p = jk.muon(0.1, matrices=seen), {"a": jnp.ones((2, 3, 4)), "head": jnp.ones((3, 4)), "b": jnp.ones(3)}
    grains = {path: g.kind.grain for g in kernel.describe(p).groups for path in g.paths}
    assert grains == {"a": "matrix, 2 of 3 x 4", "head": "element", "b": "element"}


def test_a_plan_says_what_is_seen_as_what_and_lists_the_rest():
    kernel = jk.muon(0.1, matrices={"conv": "rows... columns"}, iteration="cans")
    p = {"conv": jnp.ones((3, 3, 2, 5)), "kernel": jnp.ones((3, 4)), "bias": jnp.ones(4), "cube": jnp.ones((2, 3, 4))}
    text = str(kernel.describe(p))
    assert "Muon (matrix, 18 x 5)" in text and "Muon (matrix) " in text
    assert "Muon orthogonalizes in 5 Newton-Schulz iterations of cans, with products in float32" in text
    assert "AdamPart, instead of Muon, updates bias, cube" in text


@pytest.mark.parametrize("face", ["pure", "partition", "stateful"])
def test_arrays_of_more_axes_do_not_go_to_adam_in_silence(face):
    p = {"cube": jnp.ones((2, 3, 4)), "w": jnp.ones((3, 4)), "embedding": jnp.ones((2, 3, 4)), "b": jnp.ones(3)}

    def begin(**settings):
        if face == "stateful":
            jk.Muon(0.1, **settings).build([jk.Variable(x, name=n) for n, x in p.items()])
        else:
            kernel = jk.muon(0.1, **settings)
            (kernel if face == "pure" else jk.partition({"^b": jk.sgd(0.1)}, default=kernel)).init(p)

    with pytest.warns(UserWarning, match=r"two axes, and AdamPart updates `cube` \(2, 3, 4\)\. Say") as seen:
        begin()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for told in ({"cube": None}, {"cube": "batch rows columns"}, lambda path, shape: None):
            begin(matrices=told)
        begin(exclude_layers=["cube"])


BAD = {
    "axes": {"w": "rows columns"},
    "words": {"w": "rows columns heads"},
    "no columns": {"w": "rows rows batch"},
    "size": {"w": "rows batch (batch=3 columns)"},
    "two unknown": {"w": "rows batch (batch columns)"},
    "zero": {"w": "rows batch (batch=0 columns)"},
}


@pytest.mark.parametrize("name", BAD)
def test_descriptions_that_do_not_fit(name):
    with pytest.raises(ValueError, match=r"`w`.*Received|Received.*`w`"):
        jk.muon(matrices=BAD[name]).init({"w": jnp.ones((2, 3, 4))})


def test_a_pattern_without_a_parameter_is_told():
    with pytest.warns(UserWarning, match="matrices"):
        jk.muon(matrices={"missing": "batch rows columns"}).init({"w": jnp.ones((2, 3))})


@pytest.mark.parametrize(
    "arguments",
    [
        {"matrices": "rows columns"}, {"matrices": {"w": 3}}, {"matrices": {"(": None}}, {"iteration": "polar_express"},
        {"iteration": [(1, 2)]}, {"normalization": "none"}, {"precision": "float16"}, {"scale": "muon"},
        {"others": "adam"}, {"others": rules.Lion(0.5)}, {"others": rules.Nadam()}, {"others": rules.Muon()},
    ],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises((TypeError, ValueError), match="Received|must"):
        jk.muon(**arguments)


def test_another_rule_for_the_others():
    p, g = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, {"w": jnp.ones((3, 4)), "b": jnp.arange(4.0)}
    kernel = jk.muon(0.1, adam_lr_ratio=0.5, adam_weight_decay=0.25, others=rules.Lion(beta_1=0.5))
    lion = jk.lion(0.05, beta_1=0.5, weight_decay=0.5)  # the decay is at Muon's own rate
    state, theirs, q = kernel.init(p), lion.init(p), p
    for _ in range(3):
        p, state = kernel.step(p, state, g, donate=False)
        q, theirs = lion.step(q, theirs, g, donate=False)
    np.testing.assert_allclose(p["b"], q["b"], rtol=1e-6)
    assert "OtherPart, instead of Muon, updates b" in str(kernel.describe(p))


def test_config():
    settings = {"matrices": {"conv": "rows... columns", "head": None}, "iteration": [[2.0, -1.5, 0.5]], "gram": True}
    config = jk.Muon(0.1, **settings).get_config()
    assert config["matrices"] == [["conv", "rows... columns"], ["head", None]]
    assert jk.Muon.from_config(config).get_config() == config
    assert "matrices" not in jk.Muon(0.1).get_config()  # Keras's own keys
    config = jk.Muon(0.1, others=rules.Lion(beta_1=0.5)).get_config()
    assert config["others"]["config"]["beta_1"] == 0.5 and jk.Muon.from_config(config).get_config() == config
    with pytest.warns(UserWarning, match="`matrices` is a function"):
        assert "matrices" not in jk.Muon(0.1, matrices=lambda path, shape: None).get_config()


def test_qk_clip():
    rng = np.random.default_rng(1)
    x, q, k = (rng.normal(size=shape).astype("float32") for shape in ((7, 4), (4, 3, 5), (4, 3, 5)))
    logits = lambda q, k: np.einsum("ihd,jhd->hij", np.einsum("ie,ehd->ihd", x, q), np.einsum("ie,ehd->ihd", x, k))
    largest = logits(q, k).max((1, 2))
    threshold = float(np.sort(largest)[1])
    clipped = logits(*(np.asarray(jk.qk_clip(jnp.asarray(w), largest, threshold=threshold)) for w in (q, k)))
    np.testing.assert_allclose(clipped.max((1, 2)), np.minimum(largest, threshold), rtol=1e-5)
    rotary = jk.qk_clip(jnp.asarray(q), largest, threshold=threshold, power=1)
    np.testing.assert_allclose(rotary, q * np.minimum(1, threshold / largest)[:, None], rtol=1e-6)
    assert (jk.qk_clip(jnp.asarray(q), -largest) == q).all()
    assert (jk.qk_clip(jnp.ones((2, 2)), jnp.array(400.0), axis=None) == 0.5).all()
    with pytest.raises(ValueError, match="one number for each head"):
        jk.qk_clip(jnp.asarray(q), largest[:2])


@pytest.mark.usefixtures("jax_defaults")
def test_optax_sees_the_same_matrices():
    p = {"w": jnp.asarray(RNG.normal(size=(4, 3, 5)), jnp.float32)}
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=2)
    tx = optax.contrib.muon(0.1, muon_weight_dimension_numbers={"w": numbers})
    kernel = jk.muon(
        0.1, variant="optax", matrices={"w": "rows batch columns"}, rms_rate=None, weight_decay=None, epsilon=1e-8
    )
    ours, _ = kernel.update(p, kernel.init(p), p)
    theirs, _ = tx.update(p, tx.init(p), p)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=0, atol=1e-6)


def test_views():
    seen = view("rows (batch=2 columns)", (3, 8))
    x = jnp.arange(24.0).reshape(3, 8)
    assert seen.matrix == (3, 4) and seen.number == 2 and (seen.restored(seen.matrices(x)) == x).all()
    assert seen.lacking("rows") == (0,) and seen.without("rows").matrices(x[0]).shape == (2, 1, 4)


TRAINED = {
    "muon": (jk.muon, {}),
    "optax": (jk.muon, {"variant": "optax", "rms_rate": None}),
    "polar express": (jk.muon, {"iteration": "polar_express_nanogpt", "precision": "bfloat16"}),
    "turbo": (jk.muon, {"iteration": "turbo_flash", "ns_steps": 4, "normalization": "aol"}),
    "gram": (jk.muon, {"iteration": "cans", "gram": True}),
    "cautious": (jk.muon, {"cautious_decay": True, "weight_decay": 0.1, "scale": "spectral"}),
    "others": (jk.muon, {"others": rules.Lion(), "adam_lr_ratio": 0.1}),
    "normuon": (jk.normuon, {}),
    "adamuon": (jk.adamuon, {"signed": True}),
    "dion2": (jk.dion2, {"fraction": 0.5}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_digits_are_learnt(name):
    make, settings = TRAINED[name]
    digits = load_digits()
    x, y = jnp.asarray(digits.data[:400] / 16, jnp.float32), jnp.asarray(digits.target[:400])
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
    params = {"a": draw(64, 32), "b": jnp.zeros(32), "c": draw(32, 10), "d": jnp.zeros(10)}
    kernel = make(0.03, **settings)

    def loss(p):
        logits = jax.nn.relu(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, y))

    @jax.jit
    def train(params, state):
        def step(carry, _):
            value, grads = jax.value_and_grad(loss)(carry[0])
            return kernel.step(*carry, grads), value

        return jax.lax.scan(step, (params, state), None, 150)[1]

    losses = train(params, kernel.init(params))
    assert losses[-1] < 0.25 * losses[0], losses
