"""Measures of a run: what they are, that they cost no copy and no wait, and what is written."""

import csv
import dataclasses
import glob
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.history import History, measure, measured_step
from tests.stateful import facade

PARAMS = {
    "kernel": jnp.arange(6.0).reshape(2, 3) / 6,
    "bias": jnp.ones(3),
    "empty": jnp.ones((0, 2)),
    "s": jnp.ones(()),
}
GRADS = jax.tree.map(lambda p: p * 0.5 - 0.1, PARAMS)
GROUPS = {"bias": "bias$", "rest": "^(kernel|s)$"}


def norm(*arrays):
    return np.sqrt(sum(np.sum(np.abs(np.asarray(x, np.float64)) ** 2) for x in arrays))


def by_hand(old, new, grads):
    """The measures in NumPy."""
    leaves = [jax.tree.leaves(x) for x in (old, new, grads)]
    moved = [np.asarray(n, np.float64) - np.asarray(o, np.float64) for o, n in zip(*leaves[:2], strict=True)]
    w, u = norm(*leaves[0]), norm(*moved)
    return {"gradient_norm": norm(*leaves[2]), "update_norm": u, "weight_norm": w, "update_ratio": u / w}


def close(found, wanted):
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=2e-6, err_msg=name)


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


KERNELS = {
    "native": lambda: jk.adamw(0.1, global_clipnorm=0.1, use_ema=True),
    "xla": lambda: jk.adamw(0.1, engine="xla"),
    "guarded": lambda: jk.sgd(0.1, skip_nonfinite=True),
    "partition": lambda: jk.partition({"bias": jk.sgd(0.2)}, default=jk.sgd(0.1)),
    "loss_scaled": lambda: jk.loss_scaled(jk.sgd(0.1), initial_scale=1.0),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_step_is_the_same_and_the_norms_are_right(name):
    kernel = KERNELS[name]()
    params, state = copied(PARAMS), kernel.init(PARAMS)
    for norms in (True, False, True):
        wanted, after = kernel.step(params, state, GRADS, donate=False)
        expected = by_hand(params, wanted, GRADS)
        params, state, seen = measured_step(kernel, params, state, GRADS, norms=norms, groups=GROUPS)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), (params, state), (wanted, after))
        assert int(seen["step"]) == int(state.count) and ("update_norm" in seen) == norms
    close(seen, expected | {"gradient_norm/bias": norm(GRADS["bias"])})
    rest = expected["weight_norm"] ** 2 - float(seen["weight_norm/bias"]) ** 2
    close(seen, {"weight_norm/rest": rest**0.5})
    rates = {n: round(float(x), 3) for n, x in seen.items() if n.startswith("learning_rate")}
    one = {"learning_rate": 0.1}
    assert rates == ({"learning_rate/bias": 0.2, "learning_rate/default": 0.1} if name == "partition" else one)
    assert ("skipped" in seen) == (name in ("guarded", "loss_scaled"))


def test_a_rule_without_a_hash():
    class Listing(jk.rules.SGD):
        names: list = dataclasses.field(default_factory=lambda: ["a", "b"], kw_only=True)

    kernel, params = jk.Kernel(Listing(0.5)), {"w": jnp.ones(4)}
    with pytest.raises(TypeError, match="unhashable"):
        hash(kernel.skeleton)
    state = kernel.init(params)
    for step in (1, 2):
        params, state, seen = measured_step(kernel, params, state, {"w": jnp.ones(4)})
        close(seen, {"step": step, "gradient_norm": 2.0, "update_norm": 1.0})


def test_inside_a_jit_with_a_schedule_and_a_skipped_step():
    kernel = jk.sgd(jk.schedules.ExponentialDecay(0.5, 1, 0.5), skip_nonfinite=True)

    @jax.jit
    def run(params, state):
        def one(carry, factor):
            params, state, seen = measured_step(kernel, *carry, jax.tree.map(lambda g: g * factor, GRADS))
            return (params, state), seen

        return jax.lax.scan(one, (params, state), jnp.array([1.0, jnp.nan, 1.0]))

    _, seen = run(PARAMS, kernel.init(PARAMS))
    assert seen["learning_rate"].tolist() == [0.5, 0.25, 0.25]
    assert seen["skipped"].tolist() == [0, 1, 1] and seen["step"].tolist() == [1, 1, 2]
    assert seen["update_norm"][1] == 0 and np.isnan(seen["gradient_norm"][1])
    np.testing.assert_allclose(seen["update_norm"][2], 0.25 * norm(*jax.tree.leaves(GRADS)), rtol=1e-6)


def test_a_group_that_accumulates_has_the_rate_of_its_own_step():
    rate = jk.schedules.PiecewiseConstantDecay([0, 1, 2, 3], [1.0, 0.8, 0.6, 0.4, 0.2])
    kernel = jk.partition({"a": jk.sgd(rate, gradient_accumulation_steps=2)}, default=jk.sgd(rate))
    for wrapped in (kernel, jk.loss_scaled(kernel, initial_scale=1.0)):
        params, seen = {"a": jnp.ones(2), "b": jnp.ones(2)}, {}
        state = wrapped.init(params)
        for _ in range(4):
            params, state, seen = measured_step(wrapped, params, state, copied(params), norms=False)
        close(seen, {"learning_rate/a": 0.8, "learning_rate/default": 0.4, "step": 4})


@pytest.mark.skipif(bool(jk.engine.native.unavailable()), reason="no native engine")
def test_nothing_is_copied_for_it():
    """The old parameters are consumed by the loop that measures them: no second pass, and no copy of them."""
    kernel, params = jk.adamw(0.1), {"w": jnp.ones((256, 256))}
    state = kernel.init(params)

    def text(step):
        return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile().as_text()

    measured = text(lambda p, s, g: measured_step(kernel, p, s, g))
    assert not [line for line in measured.splitlines() if "copy(" in line and "f32[256,256]" in line]
    assert not [line for line in measured.splitlines() if "fusion(" in line and "f32[256,256]" in line]


def test_leaves_of_every_kind(jax_defaults):
    old = {
        "half": jnp.ones(4, jnp.bfloat16),
        "z": jnp.array([3 + 4j], jnp.complex64),
        "rows": jnp.zeros((3, 2)),
        "still": jnp.ones(2),
    }
    grads = {
        "half": jnp.full(4, 0.5, jnp.bfloat16),
        "z": jnp.array([1j], jnp.complex64),
        "rows": jk.IndexedSlices(jnp.ones((2, 2)), jnp.array([1, 1])),  # one row of twos
        "still": None,
    }
    kernel = jk.sgd(0.5)
    new, _, seen = measured_step(kernel, old, kernel.init(old), grads, donate=False, groups={n: n for n in old})
    found = {n: float(seen[f"gradient_norm/{n}"]) for n in old}
    assert found == pytest.approx({"half": 1, "z": 1, "rows": 8**0.5, "still": 0})
    assert float(seen["update_norm/rows"]) == pytest.approx(2**0.5) and float(seen["update_norm/still"]) == 0
    assert float(seen["weight_norm"]) == pytest.approx((4 + 25 + 2) ** 0.5) and np.isnan(seen["update_ratio/rows"])
    assert seen["gradient_norm"].dtype == jnp.float32
    close(measure(old, new, grads), {n: seen[n] for n in ("gradient_norm", "update_norm", "weight_norm")})


@pytest.mark.parametrize("groups", [None, {"w": "^w$"}])
def test_packed(groups):
    params = jk.pack({"w": jnp.ones(3), "b": jnp.full(2, 2.0)})
    kernel, grads = jk.sgd(1.0), jk.pack({"w": jnp.ones(3), "b": jnp.zeros(2)})
    for given in (grads, grads.unpack()):
        _, _, seen = measured_step(kernel, params, kernel.init(params), given, donate=False, groups=groups)
        close(seen, {"gradient_norm": 3**0.5, "update_norm": 3**0.5, "weight_norm": 11**0.5})
    assert groups is None or float(seen["weight_norm/w"]) == pytest.approx(3**0.5)


def axis_sgd(**options):
    return jk.sgd(1.0, axis_name="i", **options)


@pytest.mark.parametrize(
    "kernel",
    [axis_sgd(), jk.loss_scaled(axis_sgd(), initial_scale=1.0), jk.partition({"w": axis_sgd()})],
    ids=["plain", "loss_scaled", "partition"],
)
def test_over_a_mapped_axis_the_gradient_is_the_sum(kernel):
    grads = {"w": jnp.arange(8.0).reshape(4, 2)}
    state = kernel.init({"w": jnp.ones(2)})
    step = jax.vmap(lambda g: measured_step(kernel, {"w": jnp.ones(2)}, state, g)[2], axis_name="i")
    np.testing.assert_allclose(step(grads)["gradient_norm"], np.full(4, norm(np.array([12.0, 16.0]))))


SCALED = {
    "factor": jk.sgd(0.5, loss_scale_factor=1024.0),
    "dynamic": jk.loss_scaled(jk.sgd(0.5), initial_scale=1024.0),
    "both": jk.loss_scaled(jk.sgd(0.5, loss_scale_factor=4.0), initial_scale=256.0),
    "groups": jk.partition({"a": jk.sgd(0.5, loss_scale_factor=256.0)}, default=jk.sgd(0.5, loss_scale_factor=64.0)),
    "scaled_groups": jk.loss_scaled(
        jk.partition({"a": jk.sgd(0.5, loss_scale_factor=4.0)}, default=jk.sgd(0.5)), initial_scale=64.0
    ),
}
FACTORS = {"groups": {"a": 256.0, "b": 64.0}, "scaled_groups": {"a": 256.0, "b": 64.0}}


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
@pytest.mark.parametrize("name", SCALED)
def test_the_gradient_is_unscaled(name, packed):
    kernel, factors = SCALED[name], FACTORS.get(name, {"a": 1024.0, "b": 1024.0})
    params = {"a": jnp.ones(3, jnp.float16), "b": jnp.ones(2, jnp.float16)}
    grads = {n: jnp.full_like(p, factors[n]) for n, p in params.items()}
    if packed:
        params, grads = jk.pack(params), jk.pack(grads)
    _, _, seen = measured_step(kernel, params, kernel.init(params), grads, donate=False, groups={"a": "^a$"})
    close(seen, {"gradient_norm": 5**0.5, "gradient_norm/a": 3**0.5, "update_norm": 0.5 * 5**0.5})


STATEFUL = {
    "factor": lambda: jk.SGD(0.5, loss_scale_factor=1024.0),
    "dynamic": lambda: jk.LossScaleOptimizer(jk.SGD(0.5), initial_scale=1024.0),
    "multi": lambda: jk.MultiOptimizer(jk.OptimizerMap(jk.SGD(0.5)), loss_scale_factor=1024.0),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_the_gradient_is_unscaled_in_the_stateful_face(name):
    history, variable = History(groups={"all": ""}), jk.Variable(jnp.ones(3), name="w")
    history.apply_gradients(STATEFUL[name](), [(jnp.full(3, 1024.0), variable)])
    wanted = {"gradient_norm": 3**0.5, "gradient_norm/all": 3**0.5, "update_norm": 0.5 * 3**0.5}
    close({n: history[n][0] for n in wanted}, wanted)


def test_bad_input():
    kernel = jk.sgd(0.1)
    state = kernel.init(PARAMS)
    with pytest.raises(ValueError, match="The group 'x' has no parameter: 'nothing' matches none of the paths"):
        measured_step(kernel, PARAMS, state, GRADS, groups={"x": "nothing"}, donate=False)
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        measured_step(None, PARAMS, state, GRADS)
    with pytest.raises(TypeError, match="`groups` must map names to regular expressions. Received: \\['w'\\]"):
        History(groups=["w"])
    with pytest.raises(TypeError, match="`groups` must map names to regular expressions. Received: 'x': 3"):
        measured_step(kernel, PARAMS, state, GRADS, groups={"x": 3}, donate=False)
    with pytest.raises(ValueError, match="`every` must be an integer >= 1. Received: every=0"):
        History(every=0)
    with pytest.raises(TypeError, match="`norms` must be True or False.*make it a static argument"):
        jax.jit(lambda norms: measured_step(kernel, PARAMS, state, GRADS, norms=norms))(True)
    with pytest.raises(TypeError, match="`state` must be what `init`"):
        measured_step(kernel, PARAMS, None, GRADS)
    with pytest.raises(ValueError, match=r"`loss` must be one number. Received: an array of shape \(2,\)"):
        History().append(loss=jnp.ones(2))
    with pytest.raises(ValueError, match="nothing to plot"):
        History().plot()
    with pytest.raises(KeyError, match="There is no column 'x'"):
        History()["x"]


# ---------------------------------------------------------------------------------------------------------------------
# The stateful face


@facade.every_kind
def test_apply_gradients(kind):
    plain, variables = facade.two(kind), facade.two(kind)
    optimizers = [jk.Adam(0.1, skip_nonfinite=True) for _ in range(2)]
    history = History(every=2, groups={"all": ""})
    for i in range(3):
        grads = facade.some_grads(i)
        before = facade.values(variables)
        optimizers[0].apply_gradients(zip(grads, plain, strict=True))
        history.apply_gradients(optimizers[1], zip(grads, variables, strict=True), loss=jnp.float32(i))
        facade.same(facade.values(variables), facade.values(plain))
        if i == 2:
            wanted = by_hand(before, facade.values(variables), grads)
            close({n: history[n][2] for n in wanted}, wanted)
            close({n: history[f"{n}/all"][2] for n in wanted}, wanted)
    assert history["step"].tolist() == [1, 2, 3] and history["loss"].tolist() == [0, 1, 2]
    assert history["skipped"].tolist() == [0, 0, 0]
    assert np.isnan(history["gradient_norm"]).tolist() == [False, True, False]
    np.testing.assert_allclose(history["learning_rate"], 0.1)


def test_a_group_without_variables_changes_nothing():
    w, optimizer, history = jk.Variable(jnp.ones(2), name="w"), jk.SGD(0.5), History(groups={"x": "nothing"})
    with pytest.raises(ValueError, match="The group 'x' has no parameter"):
        history.apply_gradients(optimizer, [(jnp.ones(2), w)])
    assert w.numpy().tolist() == [1, 1] and int(optimizer.iterations) == 0


def test_what_an_optax_transformation_takes_besides():
    optax = pytest.importorskip("optax")
    kernel = jk.Kernel.from_optax(optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau()))
    params = {"w": jnp.ones(2)}
    given = params, kernel.init(params), params
    value = jnp.float32(1.0)
    with jax.numpy_dtype_promotion("standard"):
        new, state, seen = measured_step(kernel, *given, donate=False, value=value)
        again = kernel.step(*given, donate=False, value=value)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, (new, state), again)) and int(seen["step"]) == 1
    with pytest.raises(TypeError, match=r"`donate`. Received: \['other'\]"):
        measured_step(jk.sgd(0.5), params, jk.sgd(0.5).init(params), params, other=1.0)


@pytest.mark.parametrize("bad", ["0.5", None])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match="`loss` must be one number. Received: loss="):
        History().append(loss=bad)
    with pytest.raises(TypeError, match="Return it from the `jit`"):
        jax.jit(lambda x: History().append(loss=x))(1.0)


def test_apply_gradients_of_others():
    import optax

    history, variable = History(), jk.Variable([1.0, 1.0])
    with jax.numpy_dtype_promotion("standard"):
        history.apply_gradients(jk.Optimizer.from_optax(optax.sgd(0.5)), [([1.0, 0.0], variable)])
    assert "learning_rate" not in history.names and history["update_norm"].tolist() == [0.5]
    with pytest.raises(ValueError, match="No gradients provided"):
        history.apply_gradients(jk.SGD(), [(None, variable)])
    assert len(history) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The record


def test_nothing_waits(monkeypatch):
    history, fetched = History(), []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(len(x)) or get(x))
    for i in range(600):
        history.append({"step": jnp.int32(i)}, loss=jnp.float32(i))
    assert fetched == [256]  # the oldest, when they became more than 512
    assert len(history) == 600 and history["loss"].tolist() == [*range(600)]


KERNEL = jk.adamw(jk.schedules.CosineDecay(0.3, 8), skip_nonfinite=True)


def run():
    """Eight steps, the sixth of which is skipped."""
    kernel, history = KERNEL, History()
    params, state = copied(PARAMS), kernel.init(PARAMS)
    for i in range(8):
        grads = jax.tree.map(lambda p, i=i: p * (jnp.nan if i == 5 else 1.0), params)
        params, state, seen = measured_step(kernel, params, state, grads, norms=i % 2 == 0, groups=GROUPS)
        history.append(seen, loss=norm(*jax.tree.leaves(params)))
    return history


def test_csv(tmp_path):
    history = run()
    history.csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and list(rows[0]) == history.names and history.names[0] == "step"
    assert rows[1]["gradient_norm"] == "" and rows[0]["gradient_norm/bias"] != ""
    assert [float(row["loss"]) for row in rows] == history["loss"].tolist()


def test_tensorboard(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    history = run()
    history.tensorboard(tmp_path / "run")
    history.append(step=9, loss=0.25)
    history.tensorboard(tmp_path / "run")  # only what is new, in a file of its own
    files = sorted(glob.glob(str(tmp_path / "run" / "*")))
    assert len(files) == 2

    def events(path):
        data, found = pathlib.Path(path).read_bytes(), []
        while data:  # a record: its length, a checksum of that, itself, a checksum
            n = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + n]))
            data = data[16 + n :]
        return [(e.step, value.tag, value.simple_value) for e in found for value in e.summary.value]

    first, second = sorted(map(events, files), key=len, reverse=True)
    assert second == [(9, "loss", 0.25)]
    losses = [(step, x) for step, tag, x in first if tag == "loss"]
    np.testing.assert_allclose(losses, list(zip(history["step"], history["loss"], strict=True))[:8], rtol=1e-6)
    assert {tag for _, tag, _ in first} >= {"learning_rate", "gradient_norm/bias", "update_ratio", "skipped"}


def test_plot(tmp_path):
    history = run()
    figure = history.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:3] == ["loss", "Learning rate", "Norm of the gradient"] and len(titles) == 5
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["gradient norm", "bias", "rest"]
    only = History()
    only.append(loss=1.0)
    assert len(only.plot().axes) == 1


def test_line():
    history = run()
    jax.block_until_ready(history._waiting)
    assert history.line().startswith("step 7  loss ") and "rate " in history.line()
