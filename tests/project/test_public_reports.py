"""Faults that people reported to other projects, as small programs; the first line of each test names the report.

`tests/README.md` lists them.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint, schedules
from jaxopt_keras.storage.blockwise import Code, dequantize, quantize
from tests.laws.cases import assert_same_bits

PAGE = Path(__file__).parent.parent / "README.md"
REPORT = re.compile(r"[\w.-]+/[\w.-]+ #\d+")
P = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.zeros(2)}


def grads(i=0, dtype=jnp.float32):
    rng = np.random.default_rng(i)
    return {n: jnp.asarray(rng.normal(size=x.shape), dtype) for n, x in P.items()}


def trained(kernel, steps=3, params=P, state=None):
    state = kernel.init(params) if state is None else state
    for i in range(steps):
        params, state = kernel.step(params, state, grads(i), donate=False)
    return params, state


def test_the_page_lists_them():
    assert set(REPORT.findall(Path(__file__).read_text())) == set(REPORT.findall(PAGE.read_text()))


@pytest.mark.parametrize("made", [jk.adafactor, jk.schedule_free_adamw])
def test_accumulation_of_bfloat16_in_a_scan(made):
    """google-deepmind/optax #377, google-deepmind/optax #1038: the branches of MultiSteps have different dtypes."""
    kernel, params = made(0.1, gradient_accumulation_steps=2), {"w": jnp.ones((4, 4), jnp.bfloat16)}
    step = lambda carry, g: (kernel.step(*carry, {"w": g}), None)
    (params, state), _ = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
        (params, kernel.init(params)), jnp.ones((4, 4, 4), jnp.bfloat16)
    )
    assert params["w"].dtype == jnp.bfloat16 and int(state.count) == 2 and bool(jnp.all(params["w"] < 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_updates_have_one_dtype_with_and_without_accumulation(dtype):
    """google-deepmind/optax #1122: updates in other dtypes under MultiSteps."""
    params, g = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.ones(3, dtype)}
    found = [
        kernel.update(g, kernel.init(params), params)[0]["w"].dtype
        for kernel in (jk.adam(0.1), jk.adam(0.1, gradient_accumulation_steps=2))
    ]
    assert found == [dtype, dtype]


@pytest.mark.parametrize("injected", [None, True])
def test_the_first_step_has_the_schedules_first_value(injected):
    """google-deepmind/optax #415: with inject_hyperparams a schedule started at step 1."""
    kernel = jk.sgd(lambda step: step.astype(float), inject_hyperparams=injected)
    first, state = kernel.step(P, kernel.init(P), grads(), donate=False)
    second, _ = kernel.step(first, state, grads(), donate=False)
    assert_same_bits(first, P)
    np.testing.assert_allclose(second["w"], P["w"] - grads()["w"], rtol=1e-6)


def test_equal_optimizers_are_one_static_argument():
    """google-deepmind/optax #197: every new optimizer compiled the same program again."""
    traces = []

    def run(kernel, params):
        traces.append(kernel)
        return kernel.step(params, kernel.init(params), params)[0]

    jitted = jax.jit(run, static_argnums=0)
    for _ in range(5):
        jitted(jk.adam(0.05), P)
    assert len(traces) == 1


SCHEDULES = [
    schedules.CosineDecay(0.0, 10, warmup_target=1.0, warmup_steps=5),
    schedules.CosineDecayRestarts(1.0, 4),
    schedules.WarmupStableDecay(1.0, 2, 3, 4),
    schedules.PiecewiseConstantDecay([3, 6], [1.0, 0.5, 0.1]),
    schedules.PolynomialDecay(1.0, 10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules_of_traced_steps(schedule):
    """google-deepmind/optax #504: schedules of several pieces could not be traced."""
    expected = [float(schedule(i)) for i in range(12)]
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(12)), expected, rtol=1e-6)
    assert not any(np.isnan(expected))


def test_the_cosine_starts_after_the_warm_up():
    """lindermanlab/S5 #11, facebookresearch/fairchem #1967: the decay began within the warm-up, so the rate fell."""
    schedule = schedules.CosineDecay(0.0, 100, warmup_target=1.0, warmup_steps=20)
    assert [float(schedule(s)) for s in (20, 70, 120)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-7)
    assert float(schedule(21)) == pytest.approx(0.5 + 0.5 * np.cos(np.pi / 100), rel=1e-6)


def test_the_cosine_ends_at_its_last_step():
    """goodfire-ai/spd #642: two conventions, steps or steps - 1, for the end of a decay. Ours is optax's."""
    ours, theirs = schedules.CosineDecay(0.1, 50, alpha=0.1), optax.cosine_decay_schedule(0.1, 50, alpha=0.1)
    for step in (0, 25, 49, 50, 60):
        assert float(ours(step)) == pytest.approx(float(theirs(step)), rel=1e-6)


def test_a_resumed_run_has_the_new_numbers():
    """pytorch/pytorch #156846, pytorch/pytorch #129683, NVIDIA-NeMo/Automodel #3883: the rate came from one place and
    the decay from another."""
    params, state = trained(jk.adamw(0.1, weight_decay=0.5))
    kernel = jk.adamw(schedules.PolynomialDecay(0.2, 10), weight_decay=0.25)
    resumed = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    new, _ = trained(kernel, 1, params, resumed)
    rate = float(kernel.rule.learning_rate(3))
    expected, _ = trained(jk.adamw(rate, weight_decay=0.25), 1, params, state)
    np.testing.assert_allclose(new["w"], expected["w"], rtol=1e-6)


def test_a_fresh_state_starts_the_warm_up_again():
    """facebookresearch/ParlAI #4195: a reset kept the step of the warm-up."""
    kernel = jk.sgd(schedules.CosineDecay(0.0, 10, warmup_target=1.0, warmup_steps=4))
    params, state = trained(kernel, 4)
    assert int(state.count) == 4
    new, _ = trained(kernel, 1, params)
    assert_same_bits(new, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_slots_of_16_bit_parameters_are_restored_in_float32(dtype):
    """facebookresearch/fairseq2 #212: loading cast the state to the parameter's 16 bits."""
    params = jax.tree.map(lambda x: x.astype(dtype), P)
    kernel = jk.adamw(0.1, master_weights="float32")
    params, state = kernel.step(params, kernel.init(params), grads())
    again = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    assert_same_bits(again, state)
    assert again.slots["velocity"]["w"].dtype == jnp.float32


def test_evaluating_changes_no_training():
    """facebookresearch/schedule_free #32: a state saved in its mode of evaluation did not fit when resumed."""
    kernel = jk.schedule_free_adamw(0.1)
    params, state = trained(kernel)
    evaluated = kernel.averaged(params, state)
    assert not np.array_equal(evaluated["w"], params["w"])
    saved = checkpoint.to_dict(state)
    resumed = trained(kernel, 2, params, checkpoint.from_dict(kernel, params, saved))
    assert_same_bits(resumed, trained(kernel, 2, params, state))


@pytest.mark.parametrize("state_dtype", [None, "int8"])
def test_lamb_steps_with_every_format(state_dtype):
    """bitsandbytes-foundation/bitsandbytes #1350: LAMB of 32 bits lacked a slot."""
    params = {"w": jnp.ones((64, 256))}
    kernel = jk.lamb(0.1, state_dtype=state_dtype)
    new, _ = kernel.step(params, kernel.init(params), {"w": jnp.ones((64, 256))}, donate=False)
    np.testing.assert_allclose(new["w"], 0.9, rtol=2e-2)


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-15, 1.0])
def test_eight_bits_do_not_explode(size):
    """bitsandbytes-foundation/bitsandbytes #152, bitsandbytes-foundation/bitsandbytes #121: the loss became NaN."""
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=(16, 512)) * size * 10.0 ** rng.integers(-3, 1, (16, 1))) for _ in range(5)]
    ends = []
    for state_dtype in (None, "int8"):
        kernel, params = jk.adamw(0.01, weight_decay=0.0, state_dtype=state_dtype), jnp.zeros((16, 512))
        state = kernel.init(params)
        for g in drawn:
            params, state = kernel.step(params, state, g.astype(jnp.float32))
        ends.append(np.asarray(params))
    assert np.all(np.isfinite(ends[1])) and np.abs(ends[1]).max() < 0.06
    assert np.linalg.norm(ends[1] - ends[0]) < 0.25 * np.linalg.norm(ends[0])


@pytest.mark.parametrize("signed", [True, False])
def test_codes_of_eight_bits_are_all_used(signed):
    """bitsandbytes-foundation/bitsandbytes #227: a map of codes had gaps, since a block was indented."""
    x = jnp.linspace(-1 if signed else 0, 1, 256).reshape(1, -1)
    again = np.asarray(dequantize(quantize(x, Code("int8", signed=signed))))
    assert np.all(np.diff(again) >= 0) and np.abs(again - x).max() < 1 / 32


def test_a_state_of_four_bits_is_loaded():
    """pytorch/ao #1044: the state of a 4 bit Adam could not be loaded."""
    kernel, params = jk.adamw(0.1, state_dtype="int4"), {"w": jnp.ones((64, 256))}
    params, state = kernel.step(params, kernel.init(params), {"w": jnp.ones((64, 256))})
    assert_same_bits(checkpoint.from_dict(kernel, params, checkpoint.to_dict(state)), state)


def test_another_rate_compiles_nothing_with_quantized_slots():
    """pytorch/ao #736: every value of a schedule compiled the step again."""
    kernel, params = jk.adamw(0.1, state_dtype="int8", inject_hyperparams=True), {"w": jnp.ones((64, 256))}
    state, traces = kernel.init(params), []

    @jax.jit
    def step(params, state, g):
        traces.append(0)
        return kernel.step(params, state, g)

    for rate in (0.1, 0.05, 0.01):
        params, state = step(params, kernel.replaced(state, learning_rate=rate), params)
    assert len(traces) == 1


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_the_coefficient_of_a_clip_is_applied(limit):
    """deepspeedai/DeepSpeed #5150: clipping computed the coefficient, and did not multiply by it."""
    new, _ = trained(jk.sgd(1.0, global_clipnorm=limit), 1)
    total = np.sqrt(sum(np.sum(np.square(g)) for g in grads().values()))
    np.testing.assert_allclose(new["w"], P["w"] - grads()["w"] * min(1, limit / total), rtol=1e-5)


def test_sums_of_16_bit_gradients_are_float32():
    """deepspeedai/DeepSpeed #5158: accumulation in 32 bits and in 16 trained differently."""
    k, params = 256, jnp.zeros(1)
    kernel = jk.sgd(1.0, gradient_accumulation_steps=k)
    state, drawn = kernel.init(params), np.random.default_rng(0).uniform(0.5, 1, k)
    drawn = [jnp.asarray([g], jnp.bfloat16) for g in drawn]
    for g in drawn:
        params, state = kernel.step(params, state, g)
    assert float(params[0]) == pytest.approx(-np.mean([float(g[0]) for g in drawn]), rel=1e-5)


def test_a_static_loss_scale():
    """deepspeedai/DeepSpeed #138: a static loss scale had no effect."""
    scaled = jax.tree.map(lambda g: g * 1024.0, grads())
    kernel = jk.adam(0.1, loss_scale_factor=1024.0)
    found, _ = kernel.step(P, kernel.init(P), scaled, donate=False)
    assert_same_bits(found, trained(jk.adam(0.1), 1)[0])


def test_the_last_gradient_of_a_window_counts():
    """deepspeedai/DeepSpeed #7985, huggingface/transformers #35808: the last batch was not reduced as the
    others were; the norm depended on the number of batches."""
    kernel, params = jk.sgd(1.0, global_clipnorm=0.5, gradient_accumulation_steps=3), P
    found, _ = trained(kernel, 3)
    means = jax.tree.map(lambda *g: sum(g) / 3, *(grads(i) for i in range(3)))
    whole = jk.sgd(1.0, global_clipnorm=0.5)
    expected, _ = whole.step(params, whole.init(params), means, donate=False)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected)


def test_a_pattern_that_excludes_nothing_is_told():
    """huggingface/transformers #18002, huggingface/transformers #10598: "LayerNorm" excluded no `layer_norm`."""
    params = {"encoder": {"layer_norm": {"scale": jnp.ones(2)}, "dense": {"kernel": jnp.ones((2, 2))}}}
    with pytest.warns(UserWarning, match="LayerNorm"):
        jk.adamw(0.1, exclude_from_weight_decay=["LayerNorm"]).init(params)


@pytest.mark.parametrize("name", ["beta_1", "beta_2", "epsilon"])
@pytest.mark.parametrize("made", [jk.adam, jk.nadam, jk.lamb])
def test_every_number_counts(made, name):
    """HomebrewML/HeavyBall #40: beta2 was ignored where another argument had a value."""
    value = {"beta_1": 0.5, "beta_2": 0.5, "epsilon": 1.0}[name]
    assert not np.allclose(trained(made(0.1))[0]["w"], trained(made(0.1, **{name: value}))[0]["w"], rtol=1e-4)


def test_decay_of_bfloat16_weights_adds_up():
    """Nerogar/OneTrainer #996: in bfloat16 each decay was rounded away, also with stochastic rounding."""
    kernel = jk.adamw(1e-2, weight_decay=0.1, rounding="stochastic", seed=1)
    params = jnp.ones(4096, jnp.bfloat16)
    state = kernel.init(params)
    for _ in range(50):
        params, state = kernel.step(params, state, jnp.zeros(4096))
    assert float(jnp.mean(params.astype(jnp.float32))) == pytest.approx((1 - 1e-3) ** 50, abs=2e-3)


def test_muon_decays():
    """google-deepmind/optax #1275: Muon had no weight decay."""
    kernel, params = jk.muon(0.1, weight_decay=0.5), {"kernel": jnp.ones((4, 4))}
    new, _ = kernel.step(params, kernel.init(params), {"kernel": jnp.zeros((4, 4))}, donate=False)
    np.testing.assert_allclose(new["kernel"], 0.95, rtol=1e-6)


def test_the_rate_can_be_set_during_accumulation():
    """andreped/GradientAccumulator #133: the wrapper had no rate that a callback could set."""
    w = jk.Variable(jnp.zeros(2))
    optimizer = jk.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply([jnp.ones(2)], [w])
    optimizer.learning_rate = 0.5
    optimizer.apply([jnp.ones(2)], [w])
    assert w.numpy().tolist() == [-0.5, -0.5]


def test_accumulation_inside_of_loss_scaling():
    """keras-team/keras #14829: gradient accumulation did not work with mixed precision."""
    w = jk.Variable(jnp.zeros(2))
    optimizer = jk.LossScaleOptimizer(jk.SGD(1.0, gradient_accumulation_steps=2), initial_scale=8.0)
    for g in (1.0, np.inf, 3.0):
        optimizer.apply([jnp.full(2, g) * float(optimizer.dynamic_scale)], [w])
    assert w.numpy().tolist() == [-2.0, -2.0]
