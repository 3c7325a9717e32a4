"""Errors that say what to write: for names of other libraries, donated arrays, optimizers of the other face."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.language import other_names
from jaxopt_keras.language.optional import missing, optional
from jaxopt_keras.language.other_names import ADVICE, METHODS, RENAMED
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS

ROOT = Path(jk.__file__).parents[1]


def message(call, error):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# --- names of other libraries -----------------------------------------------------------------------------------------

ARGUMENTS = {  # of torch.optim's Adam, AdamW and SGD, optax's adamw, and Keras 2's
    "betas": "`beta_1` and `beta_2`",
    "fused": "Leave it out",
    "foreach": "Leave it out",
    "capturable": "Leave it out",
    "differentiable": "`jax.grad`",
    "maximize": "negative objective",
    "mask": "`exclude_from_weight_decay`",
    "b1": "`beta_1`",
    "b2": "`beta_2`",
    "eps": "`epsilon`",
    "mu_dtype": "`state_dtype`",
    "lr": "`learning_rate`",
    "params": "`kernel.init(params)`",
    "every_k_schedule": "`gradient_accumulation_steps`",
}


@pytest.mark.parametrize(("name", "ours"), ARGUMENTS.items())
def test_an_argument_of_another_library_has_a_hint(name, ours):
    for make in (jk.adam, jk.Adam, jk.adamw):
        text = message(lambda make=make: make(**{name: 1}), TypeError)
        assert f"no argument `{name}`. Received: {name}=1. " in text and ours in text, text


def test_old_decay_and_absent_arguments_have_a_hint():
    assert "InverseTimeDecay" in message(lambda: jk.adam(decay=0.1), TypeError)
    assert "Only `Adam` and `AdamW`" in message(lambda: jk.lion(amsgrad=True), TypeError)
    assert "Leave it out: only `Adam`" in message(lambda: jk.rmsprop(eps_root=0.1), TypeError)
    assert "Did you mean `rho`?" in message(lambda: jk.rmsprop(alpha=0.9), TypeError)
    for name in ("betas", "alpha"):  # no hint names an argument that the optimizer does not have
        assert "It has [" in message(lambda name=name: jk.sgd(**{name: 1}), TypeError)
    assert "It has [" in message(lambda: jk.sgd(frobnicate=1), TypeError)
    assert "`clipnorm`?" in message(lambda: jk.sgd(clipnrom=1), TypeError)


def test_every_way_to_make_an_optimizer_has_the_hints():
    makers = [lambda **kw: jk.Optimizer.from_rule(jk.Rule(), **kw), lambda **kw: jk.Kernel.from_optax(None, **kw)]
    makers += [jk.Optimizer, lambda **kw: jk.Optimizer.from_optax(optax.sgd(0.1), **kw)]
    for make in [*makers, *CLASSES.values(), *FUNCTIONS.values()]:
        assert "Leave it out" in message(lambda make=make: make(fused=True), TypeError)


def test_the_tables_name_what_exists():
    known = {name for make in FUNCTIONS.values() for name in make.__signature__.parameters}
    assert {each for names in RENAMED.values() for each in names} <= known
    assert not set(METHODS) & set(dir(jk.Optimizer))
    named = re.findall(r"jaxopt_keras\.([\w.]+)", " ".join([*ADVICE.values(), *METHODS.values()]))
    for path in named:
        found = jk
        for part in path.split("."):
            found = getattr(found, part)
    assert checkpoint.from_torch and set(named) >= {"checkpoint.load", "checkpoint.save"} - {"checkpoint.save"}


@pytest.mark.parametrize("first", [[1.0], ({"w": 1.0},), {"w": jnp.ones(2)}, jnp.ones(2), iter([jnp.ones(2)])])
def test_parameters_as_first_argument(first):
    for make in (jk.adam, jk.Adam, jk.Optimizer):
        text = message(lambda make=make: make(first), TypeError)
        assert "`learning_rate` must be a number" in text and text.endswith(ADVICE["params"]), text
    assert ADVICE["params"] not in message(lambda: jk.adam("fast"), TypeError)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_another_library_has_a_hint(name):
    multi = jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(), {}))
    for optimizer in (jk.Adam(), jk.LossScaleOptimizer(jk.SGD()), multi):
        assert message(lambda optimizer=optimizer: getattr(optimizer, name), AttributeError).endswith(METHODS[name])
        assert not hasattr(optimizer, name)
    assert message(lambda: jk.Adam().frobnicate, AttributeError) == "'Adam' object has no attribute 'frobnicate'"


def test_the_hints_for_methods_work():
    w = jk.Variable(jnp.ones(2), name="w")
    optimizer = jk.Adam(0.1)
    value, grads = jk.value_and_grad(lambda: (w.value**2).sum(), [w])
    optimizer.apply_gradients(zip(grads, [w], strict=True))
    assert "slots/w/momentum" in checkpoint.to_dict(optimizer)


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_what_is_no_kernel_says_how_to_make_one():
    flax = pytest.importorskip("jaxopt_keras.interop.flax")
    nnx = pytest.importorskip("flax.nnx")
    mesh = jax.make_mesh((1,), ("data",))
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    calls = [
        lambda x: jk.partition({"b": x}),
        lambda x: jk.partition({}, default=x),
        jk.loss_scaled,
        lambda x: jk.sharding.zero1(x, mesh),
        lambda x: flax.Optimizer(model, x),
    ]
    for call in calls:
        text = message(lambda call=call: call(optax.sgd(0.1)), TypeError)
        assert text.endswith("`jaxopt_keras.Kernel.from_optax(tx)`."), text
    for call in calls:
        text = message(lambda call=call: call(jk.SGD(0.1)), TypeError)
        assert "stateful face" in text and "`jaxopt_keras.adam()`" in text, text
    for wrong in (1, None, "adam"):
        text = message(lambda wrong=wrong: jk.loss_scaled(wrong), TypeError)
        assert text.endswith(f"Received: kernel={wrong!r}")
    assert message(lambda: jk.loss_scaled(jk.Rule()), TypeError).endswith("`jaxopt_keras.Kernel(rule)`.")
    assert "`jaxopt_keras.adam()`" in message(lambda: nnx.Optimizer(model, jk.Adam(), wrt=nnx.Param), AttributeError)


# --- donated arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [jk.adam, lambda: jk.partition({"w": jk.sgd()}), lambda: jk.loss_scaled(jk.adam())])
def test_an_array_that_a_step_donated(make):
    kernel, grads = make(), {"w": jnp.ones(3)}
    fresh = lambda: {"w": jnp.ones(3)}
    decaying, averaging = jk.adamw(), jk.schedule_free_adamw()
    params = fresh()
    state = kernel.init(params)
    kernel.step(params, state, grads)
    calls = {
        "params": [
            lambda: kernel.step(params, kernel.init(grads), grads),
            lambda: kernel.step(params, kernel.init(grads), grads, donate=False),
            lambda: decaying.update(grads, decaying.init(grads), params),
            lambda: averaging.averaged(params, averaging.init(grads)),
        ],
        "state": [lambda: kernel.step(fresh(), state, grads), lambda: kernel.update(grads, state, fresh())],
        "grads": [lambda: kernel.step(fresh(), kernel.init(grads), params)],
    }
    for name, each in calls.items():
        for call in each:
            text = message(call, RuntimeError)
            assert text.startswith(f"`{name}`") and "donate=False" in text and "`step` returned" in text, text
    params, state = kernel.step(fresh(), kernel.init(grads), grads, donate=False)
    kernel.step(params, state, grads)


def test_the_last_step_may_be_repeated_without_donation():
    kernel, params = jk.adam(), {"w": jnp.ones(3)}
    state = kernel.init(params)
    first, _ = kernel.step(params, state, params, donate=False)
    second, _ = kernel.step(grads=params, params=params, state=state, donate=False)
    amounts, _ = kernel.update(params=params, state=state, grads=params)
    assert (first["w"] == second["w"]).all() and (first["w"] == params["w"] + amounts["w"]).all()


def test_a_scheduled_rate_is_replaced_as_the_error_says():
    kernel = jk.sgd(lambda step: 0.1, inject_hyperparams=True)
    state = kernel.init(jnp.ones(2))
    text = message(lambda: kernel.replaced(state, learning_rate=0.5), ValueError)
    assert (
        "with a number, `learning_rate=0.5`, and `inject_hyperparams='learning_rate'`: it continues from this state"
        in text
    )
    params, state = kernel.step(jnp.ones(2), state, jnp.ones(2))
    numbered = jk.sgd(learning_rate=0.5, inject_hyperparams=True)
    params, state = numbered.step(params, numbered.replaced(state, learning_rate=0.5), jnp.ones(2))
    assert params.tolist() == pytest.approx([0.4, 0.4])


# --- optional libraries -----------------------------------------------------------------------------------------------


def test_every_optional_import_names_its_extra():
    """The extras in the code are those of pyproject.toml."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(path.read_text() for path in (ROOT / "jaxopt_keras").rglob("*.py"))
    for extra in re.findall(r"jaxopt_keras\[(\w+)\]", text):
        assert extra in extras
    error = message(lambda: optional("no_such_library.part", "`f`", "plots", " Or not."), ImportError)
    assert error == "`f` needs no_such_library: `pip install 'jaxopt_keras[plots]'`. Or not."
    assert isinstance(missing("keras", "it", "keras"), ImportError)


@pytest.mark.parametrize(
    ("library", "use", "extra"),
    [
        ("keras", "import jaxopt_keras.interop.keras", "keras"),
        ("flax", "import jaxopt_keras.interop.flax", "flax"),
        ("matplotlib", "from jaxopt_keras import schedules; schedules.plot(lambda step: 0.1, 3)", "plots"),
        ("safetensors", "jk.checkpoint.save('x.safetensors', jk.sgd().init(1.0))", "checkpoint"),
        ("orbax", "jk.checkpoint.save('x', jk.sgd().init(1.0))", "orbax"),
        ("tensorboardX", "h = jk.history.History(); h.append({'a': 1.0}); h.tensorboard('x')", "tensorboard"),
        ("torch", "jk.checkpoint.to_torch(k := jk.sgd(), k.init(1.0), {}, [])", "torch"),
        ("h5py", "from jaxopt_keras.checkpoint import hdf5; hdf5.NEEDED; hdf5.optional('h5py', *hdf5.NEEDED)", "keras"),
    ],
)
def test_a_missing_library(library, use, extra, tmp_path):
    code = f"import sys; sys.modules[{library!r}] = None; import jax; import jaxopt_keras as jk; {use}"
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert "ImportError" in last and f"needs {library}: `pip install 'jaxopt_keras[{extra}]'`" in last, done.stderr


def test_the_module_of_names_is_what_refuses():
    assert jk.optimizers.refuse_unknown is other_names.refuse_unknown


# --- text -------------------------------------------------------------------------------------------------------------


def decayed(step):
    return 0.1


TEXTS = {
    "Kernel(Adam(learning_rate=0.001))": jk.adam,
    "Kernel(SGD(learning_rate=0.1, momentum=0.9), Options(clipnorm=1.0))": lambda: jk.sgd(0.1, 0.9, clipnorm=1),
    "Kernel(AdamW(learning_rate=0.001), Options(weight_decay=0.004))": jk.adamw,
    "Kernel(Frozen())": jk.frozen,
    "Kernel(LossScaled(Lion(learning_rate=0.001)))": lambda: jk.loss_scaled(jk.lion()),
    "Kernel(Offloaded(Adam(learning_rate=0.001), Options(offload=('',))))": lambda: jk.adam(offload="pinned_host"),
    "Kernel(Partitioned('b$': Frozen(), 'default': SGD(learning_rate=0.01), Options(use_ema=True)))": (
        lambda: jk.partition({"b$": jk.frozen()}, default=jk.sgd(use_ema=True))
    ),
    "Adam(learning_rate=0.001)": jk.Adam,
    "AdamW(learning_rate=0.001)": jk.AdamW,
    "AdamW(learning_rate=0.01, weight_decay=0.1)": lambda: jk.AdamW(0.01, weight_decay=0.1),
    "SGD(learning_rate=0.01, nesterov=True, name='mine')": lambda: jk.SGD(nesterov=True, name="mine"),
    "Optimizer(Lion(learning_rate=0.2), clipnorm=1.0)": lambda: jk.Optimizer.from_rule(
        jk.optimizers.RULES["Lion"](0.2), clipnorm=1.0
    ),
    "Optimizer(learning_rate=0.001)": jk.Optimizer,
    "LossScaleOptimizer(Adam(learning_rate=0.3))": lambda: jk.LossScaleOptimizer(jk.Adam(0.3)),
    "MultiOptimizer(SGD(learning_rate=0.1), Adam(learning_rate=0.001))": (
        lambda: jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(), {"b": jk.SGD(0.1)}))
    ),
    "Adam(learning_rate=CosineDecay(initial_learning_rate=0.1, decay_steps=9))": (
        lambda: jk.Adam(jk.schedules.CosineDecay(0.1, 9))
    ),
    "Options(skip_nonfinite=True)": lambda: jk.Options(skip_nonfinite=True),
    "ExponentialDecay(initial_learning_rate=0.1, decay_steps=10, decay_rate=0.9, staircase=True)": (
        lambda: jk.schedules.ExponentialDecay(0.1, 10, 0.9, staircase=True)
    ),
    "<History without rows>": lambda: jk.history.History(),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_an_optimizer_prints(text):
    assert repr(TEXTS[text]()) == text


def test_a_rate_prints_as_it_was_set():
    optimizer = jk.Adam(0.1)
    optimizer.learning_rate = 0.003
    assert repr(optimizer) == "Adam(learning_rate=0.003)"
    optimizer.learning_rate.assign(0.25)
    assert repr(optimizer) == "Adam(learning_rate=0.25)"
    assert "learning_rate=<function decayed" in repr(jk.Adam(decayed)) and "<function decayed" in repr(jk.adam(decayed))
    optax_one = jk.Optimizer.from_optax(optax.sgd(0.1), use_ema=True)
    assert repr(optax_one).startswith("Optimizer(GradientTransformation") and repr(optax_one).endswith("use_ema=True)")
    assert repr(jk.adam(jnp.float32(0.5))) == f"Kernel(Adam(learning_rate={jnp.float32(0.5)!r}))"
    jax.jit(lambda rate: [repr(jk.adam(rate))] and rate)(0.1)
    history = jk.history.History()
    history.append(step=1, loss=0.5)
    assert repr(history) == "<History of 1 rows: step, loss>"


def test_a_keras_adapter_prints_its_optimizer(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    adapters = pytest.importorskip("jaxopt_keras.interop.keras")
    assert repr(adapters.Adam(0.003)) == str(adapters.Adam(0.003)) == "Adam(learning_rate=0.003)"
    assert repr(adapters.as_keras(jk.LossScaleOptimizer(jk.SGD()))) == (
        "WrappedLossScale(LossScaleOptimizer(SGD(learning_rate=0.01)))"
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_norm_of_a_tree():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 4)).astype("float32"), "b": [jnp.asarray(rng.normal(size=5), jnp.bfloat16), None]}
    expected = np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))
    for norm in (jk.global_norm, jax.jit(jk.global_norm)):
        np.testing.assert_allclose(norm(tree), expected, rtol=1e-6)
        assert norm(tree).dtype == jnp.float32
    assert jk.global_norm({}) == jk.global_norm(None) == 0
    assert jk.global_norm([3, 4.0]) == jk.global_norm(jnp.asarray([3 + 4j])) == 5
    np.testing.assert_allclose(jk.global_norm([jnp.full(4, 1e30), jnp.ones(3, jnp.float16)]), 2e30, rtol=1e-6)
    assert jnp.isnan(jk.global_norm(jnp.asarray([jnp.nan, 1.0]))) and jk.global_norm(jnp.asarray(-jnp.inf)) == jnp.inf
    rows = jk.IndexedSlices(jnp.array([[3.0], [1.0]]), jnp.array([1, 1]), (4, 1))  # one row, given twice
    assert jk.global_norm({"rows": rows, "b": jnp.asarray(3.0)}) == 5
    assert jk.global_norm([jk.Variable([3.0]), jk.Variable(4.0)]) == 5


def test_the_version_is_that_of_the_project():
    import tomllib

    assert jk.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "__version__" in dir(jk)


def test_the_number_of_the_last_step():
    kernel = jk.adam(lambda step: 0.1 / (1.0 + step.astype(float)), inject_hyperparams="learning_rate")
    params, state = jnp.ones(2), kernel.init(jnp.ones(2))
    for step in range(3):
        params, state = kernel.step(params, state, jnp.ones(2))
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1 / (1 + step))
    assert "learning_rate" not in jk.adam(lambda step: 0.1).current(jk.adam().init(params))


LOAD = """
import keras
from keras.saving import deserialize_keras_object as load
config = {"module": "jaxopt_keras.interop.keras", "class_name": "Adam", "registered_name": "jaxopt_keras>Adam"}
config["config"] = {"learning_rate": 0.5}
try:
    load(dict(config))
except TypeError as error:
    print(error)
import jaxopt_keras.interop.keras
print(load(dict(config)))
"""


def test_a_saved_model_needs_the_import_as_the_page_says():
    pytest.importorskip("keras")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=environment)
    first, *_, last = done.stdout.strip().splitlines()
    said = "Could not locate class 'Adam'"
    assert said in first and last == "Adam(learning_rate=0.5)", done.stderr
    assert said in (ROOT / "docs" / "keras.md").read_text()
