"""The oracles against the libraries that they transcribe: Keras 3 (JAX backend) and optax, both in float64.

Learning rates are exact in float32, because Keras keeps the rate, and optax its schedules, in float32. What else the
peers compute in float32 is named with the tolerances below.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import os
import pathlib
import sys

import numpy as np
import pytest

from tests.oracles import loop

os.environ.setdefault("KERAS_BACKEND", "jax")

STEPS = 12
# The peers' steps are compiled for one short run each.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RATE = 0.03125
TIGHT = 1e-12
# keras.ops.mean, norm and sqrt(int) give float32 for any input, and optax computes Adafactor's 1 - t^-0.8 in float32.
KERAS_TOLERANCE = {"adafactor": 2e-7, "muon": 1e-7}
OPTAX_TOLERANCE = {"adafactor": 2e-7}

# name: (shape, scale of the gradients)
ARRAYS = {
    "kernel": ((4, 3), 1.0),
    "scalar": ((), 1.0),
    "bias": ((3,), 1e-6),
    "cube": ((2, 3, 4), 1e-3),
}
ZERO = {"zero": ((3,), 1.0)}  # a parameter of zeros, for the rules with norms
MATRICES = ARRAYS | {"tiny": ((4, 3), 1e-6), "wide": ((3, 7), 1.0), "embedding_table": ((5, 4), 1e-3)}
DEEP = ARRAYS | ZERO | {"wide": ((3, 4), 1e-6), "stack": ((6, 5, 4, 3), 1.0), "middle": ((3, 6, 5), 1e-3)}
LARGE = ARRAYS | {"tall": ((130, 128), 1.0), "broad": ((2, 128, 140), 1e-3), "thin": ((127, 200), 1e-6)}
OWN_ARRAYS = {"muon": MATRICES, "adafactor": DEEP, "lamb": ARRAYS | ZERO}


def oracle(name):
    return importlib.import_module(f"tests.oracles.{name}")


def schedule(step):
    """1, 2, 3, 1, 2, 3, .. times RATE; for the ints and the arrays of every library."""
    return RATE * (1 + step % 3)


def problem(arrays, imaginary=False):
    """Parameters and STEPS gradients, two of which are zero for some of the parameters."""
    rng = np.random.default_rng(0)

    def normal(shape):
        x = rng.normal(size=shape)
        return np.asarray(x + 1j * rng.normal(size=shape) if imaginary else x)

    params = {name: normal(shape) * (name != "zero") for name, (shape, _) in arrays.items()}
    grads = [{name: scale * normal(shape) for name, (shape, scale) in arrays.items()} for _ in range(STEPS)]
    for step, name in ((0, "zero"), (0, "scalar"), (3, "kernel")):
        if name in arrays:
            grads[step][name] = 0 * grads[step][name]
    return params, grads


@contextlib.contextmanager
def peer():
    """Where the peers run: float64, and the promotions that they rely on."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_close(actual, expected, tolerance, message):
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape, message
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale, err_msg=message)


def assert_same_run(history, expected, tolerance):
    """Lists of {name: parameter}, step by step."""
    assert len(history) == len(expected)
    for step, (ours, theirs) in enumerate(zip(history, expected, strict=True), 1):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_close(ours[name], theirs[name], tolerance, f"{name} after step {step}")


# --- Keras

CLASSES = {
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "adafactor": "Adafactor",
    "nadam": "Nadam",
    "ftrl": "Ftrl",
    "lion": "Lion",
    "lamb": "Lamb",
    "muon": "Muon",
    "schedule_free_adamw": "ScheduleFreeAdamW",
}

KERAS_CASES = [
    ("sgd", {}),
    ("sgd", {"nesterov": True}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {}),
    ("rmsprop", {"rho": 0.8, "momentum": 0.9, "epsilon": 1e-5}),
    ("rmsprop", {"centered": True}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
    ("adam", {}),
    ("adam", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True}),
    ("adamw", {}),
    ("adadelta", {}),
    ("adadelta", {"rho": 0.8, "epsilon": 1e-4}),
    ("adagrad", {}),
    ("adagrad", {"initial_accumulator_value": 0.0, "epsilon": 1e-4}),
    ("adamax", {}),
    ("adamax", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}),
    ("adafactor", {}),
    ("adafactor", {"relative_step": False, "learning_rate": 2.0}),
    ("adafactor", {"beta_2_decay": -0.5, "epsilon_1": 1e-3, "epsilon_2": 0.5, "clip_threshold": 0.25}),
    ("nadam", {}),
    ("nadam", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}),
    ("ftrl", {}),
    (
        "ftrl",
        {
            "learning_rate_power": -0.3,
            "initial_accumulator_value": 0.2,
            "l1_regularization_strength": 0.01,
            "l2_regularization_strength": 0.1,
            "l2_shrinkage_regularization_strength": 0.2,
            "beta": 0.3,
        },
    ),
    ("lion", {}),
    ("lion", {"beta_1": 0.5, "beta_2": 0.8}),
    ("lamb", {}),
    ("lamb", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}),
    ("muon", {}),
    ("muon", {"nesterov": False, "rms_rate": None, "exclude_embeddings": False, "exclude_layers": ["nel$", "x"]}),
    (
        "muon",
        {
            "muon_a": 3.0,
            "muon_b": -4.0,
            "muon_c": 2.0,
            "ns_steps": 3,
            "momentum": 0.8,
            "adam_lr_ratio": 0.5,
            "adam_beta_1": 0.8,
            "adam_beta_2": 0.9,
            "epsilon": 1e-3,
        },
    ),
    ("schedule_free_adamw", {}),
    ("schedule_free_adamw", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "warmup_steps": 4}),
]


def case_id(case):
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


class KerasRun:
    """A Keras optimizer over named float64 variables; `run` is like `Loop.run`."""

    def __init__(self, name, params, learning_rate, constraints=None, **arguments):
        self.name = name
        keras = pytest.importorskip("keras")

        class Schedule(keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step):
                return schedule(keras.ops.cast(step, "float64"))

        rate = Schedule() if learning_rate is schedule else learning_rate
        self.variables = {n: keras.Variable(p, dtype="float64", name=n) for n, p in params.items()}
        for n, constraint in (constraints or {}).items():
            self.variables[n].constraint = constraint
        self.optimizer = getattr(keras.optimizers, CLASSES[name])(rate, **arguments)
        self.optimizer.build(list(self.variables.values()))

    def run(self, grads):
        step = pytest.importorskip("jax").jit(self.optimizer.stateless_apply, compiler_options=QUICK)
        state = [v.value for v in self.optimizer.variables]
        values = [v.value for v in self.variables.values()]
        history = []
        for g in grads:
            values, state = step(state, [g[n] for n in self.variables], values)
            history.append(dict(zip(self.variables, map(np.asarray, values), strict=True)))
        for variable, value in zip(self.optimizer.variables, state, strict=True):
            variable.assign(value)
        return history

    def slots(self):
        """{(variable, slot): value}, Adafactor's and Nadam's unnamed ones by hand."""
        optimizer, found = self.optimizer, {}
        for v in optimizer.variables:
            for n in self.variables:
                if v.name.startswith(f"{n}_"):
                    found[n, v.name.removeprefix(f"{n}_")] = np.asarray(v.value)
        for i, n in enumerate(self.variables):
            if self.name == "adafactor" and self.variables[n].ndim >= 2:
                del found[n, "velocity"]  # full size: the oracle has none
                found[n, "row"], found[n, "column"] = np.asarray(optimizer._r[i]), np.asarray(optimizer._c[i])
            if self.name == "nadam":
                found[n, "u_product"] = np.asarray(optimizer._u_product)
        return found


@pytest.mark.parametrize("case", KERAS_CASES, ids=case_id)
def test_keras(case):
    """Under a schedule unless the case has a rate; the matrices and all else decay, `bias` and `cube` do not."""
    name, hyper = case
    hyper = dict(hyper)
    rate, wd = hyper.pop("learning_rate", schedule), 0.1
    if name == "muon":
        hyper["adam_weight_decay"] = 0.05
    params, grads = problem(OWN_ARRAYS.get(name, ARRAYS))
    ours = loop.Loop(oracle(name), params, rate, weight_decay=wd, exclude=("bias", "cube"), **hyper)
    history = ours.run(grads)
    with peer():
        theirs = KerasRun(name, params, rate, weight_decay=wd, **hyper)
        theirs.optimizer.exclude_from_weight_decay(var_names=["bias", "^cu"])
        expected = theirs.run(grads)
        slots = theirs.slots()
    tolerance = KERAS_TOLERANCE.get(name, TIGHT)
    assert_same_run(history, expected, tolerance)
    assert {(n, slot) for n in ours.slots for slot in ours.slots[n]} == slots.keys()
    for (n, slot), value in slots.items():
        assert_close(ours.slots[n][slot], value, 10 * tolerance, f"{n}, slot {slot}")


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_keras(name):
    keras = pytest.importorskip("keras")
    base = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
    wanted = inspect.signature(getattr(keras.optimizers, CLASSES[name]).__init__).parameters
    own = {n: p.default for n, p in wanted.items() if n not in base and n not in ("self", "learning_rate", "kwargs")}
    found = {}
    for function in (oracle(name).init, oracle(name).update):
        found |= {n: p.default for n, p in inspect.signature(function).parameters.items() if n in own}
    assert found == own


# --- optax


def _times(factor, rate):
    return (lambda count: factor * rate(count)) if callable(rate) else factor * rate


def _decayed(optax, transform, rate, wd):
    return optax.chain(transform, optax.add_decayed_weights(wd or 0.0), optax.scale_by_learning_rate(rate))


def _plus_decoupled(optax, tx, rate, wd):
    """optax has no decay here: add -rate wd p to what the transformation returns."""
    return optax.chain(tx, optax.add_decayed_weights(_times(-wd, rate)))


def optax_sgd(optax, rate, wd, momentum=0.0, nesterov=False):
    if wd is None:
        return optax.sgd(rate, momentum or None, nesterov)
    return _decayed(optax, optax.trace(momentum, nesterov), rate, wd)


def optax_rmsprop(optax, rate, wd, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False):
    tx = optax.rmsprop(rate, decay=rho, eps=epsilon, centered=centered, momentum=momentum or None)
    return tx if wd is None else _plus_decoupled(optax, tx, rate, wd)


def optax_adagrad(optax, rate, wd, initial_accumulator_value=0.1, epsilon=1e-7):
    tx = optax.adagrad(rate, initial_accumulator_value, epsilon)
    return tx if wd is None else _plus_decoupled(optax, tx, rate, wd)


def optax_adam(optax, rate, wd, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
    if wd is None:
        return (optax.amsgrad if amsgrad else optax.adam)(rate, beta_1, beta_2, epsilon)
    if amsgrad:
        return _decayed(optax, optax.scale_by_amsgrad(beta_1, beta_2, epsilon), rate, wd)
    return optax.adamw(rate, beta_1, beta_2, epsilon, weight_decay=wd)


def optax_adadelta(optax, rate, wd, rho=0.95, epsilon=1e-7):
    return optax.adadelta(rate, rho, epsilon, weight_decay=wd or 0.0)


def optax_adamax(optax, rate, wd, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    if wd is None:
        return optax.adamax(rate, beta_1, beta_2, epsilon)
    return optax.adamaxw(rate, beta_1, beta_2, epsilon, weight_decay=wd)


def optax_nadam(optax, rate, wd, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    if wd is None:
        return optax.nadam(rate, beta_1, beta_2, epsilon)
    return optax.nadamw(rate, beta_1, beta_2, epsilon, weight_decay=wd)


def optax_adafactor(
    optax, rate, wd, beta_2_decay=-0.8, epsilon_1=1e-30, clip_threshold=1.0, min_dim_size_to_factor=128, **_
):
    return optax.adafactor(
        rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=-beta_2_decay,
        clipping_threshold=clip_threshold,
        weight_decay_rate=wd,
        eps=epsilon_1,
    )


def optax_lion(optax, rate, wd, beta_1=0.9, beta_2=0.99):
    return optax.lion(rate, beta_1, beta_2, weight_decay=wd or 0.0)


def optax_lamb(optax, rate, wd, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    return optax.lamb(rate, beta_1, beta_2, epsilon, weight_decay=wd or 0.0)


def optax_muon(
    optax,
    rate,
    wd,
    adam_beta_1=0.9,
    adam_beta_2=0.999,
    adam_weight_decay=None,
    epsilon=1e-7,
    muon_a=3.4445,
    muon_b=-4.7750,
    muon_c=2.0315,
    adam_lr_ratio=1.0,
    momentum=0.95,
    ns_steps=5,
    nesterov=True,
    rms_rate=0.2,
    exclude_embeddings=True,
):
    plain = optax.contrib.MuonDimensionNumbers()
    matrices = {n: len(shape) == 2 and "embedding" not in n for n, (shape, _) in MATRICES.items()}
    return optax.contrib.muon(
        rate,
        ns_coeffs=(muon_a, muon_b, muon_c),
        ns_steps=ns_steps,
        beta=momentum,
        eps=epsilon,
        weight_decay=wd or 0.0,
        nesterov=nesterov,
        adam_b1=adam_beta_1,
        adam_b2=adam_beta_2,
        adam_weight_decay=adam_weight_decay or 0.0,
        adam_learning_rate=_times(adam_lr_ratio, rate),
        muon_weight_dimension_numbers=(
            {n: plain if matrix else None for n, matrix in matrices.items()} if exclude_embeddings else None
        ),
        consistent_rms=rms_rate,
    )


def optax_schedule_free_adamw(optax, rate, wd, beta_1=0.9, beta_2=0.999, epsilon=1e-8, warmup_steps=0):
    if callable(rate):
        # optax averages by the rate of the next update (its count starts at 1), the oracle by that of this one.
        base = optax.chain(
            optax.scale_by_rms(beta_2, epsilon, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(wd or 0.0),
            optax.scale_by_learning_rate(rate),
        )
        return optax.contrib.schedule_free(base, lambda count: rate(count - 1), beta_1)
    return optax.contrib.schedule_free_adamw(
        rate, warmup_steps=warmup_steps or None, b1=beta_1, b2=beta_2, eps=epsilon, weight_decay=wd or 0.0
    )


# name: (builder, {our slot: field of the optax state}), then the cases.
OPTAX = {
    "sgd": (optax_sgd, {"momentum": "trace"}),
    "rmsprop": (optax_rmsprop, {"velocity": "nu", "average_gradient": "mu"}),
    "adam": (optax_adam, {"momentum": "mu", "velocity": "nu", "velocity_hat": "nu_max"}),
    "adamw": (optax_adam, {"momentum": "mu", "velocity": "nu", "velocity_hat": "nu_max"}),
    "adadelta": (optax_adadelta, {"accumulated_grad": "e_g", "accumulated_delta_var": "e_x"}),
    "adagrad": (optax_adagrad, {"accumulator": "sum_of_squares"}),
    "adamax": (optax_adamax, {"momentum": "mu", "norm": "nu"}),
    "adafactor": (optax_adafactor, {}),
    "nadam": (optax_nadam, {"momentum": "mu", "velocity": "nu"}),
    "lion": (optax_lion, {"momentum": "mu"}),
    "lamb": (optax_lamb, {"momentum": "mu", "velocity": "nu"}),
    "muon": (optax_muon, {}),
    "schedule_free_adamw": (
        optax_schedule_free_adamw,
        {"momentum": "z", "velocity": "nu", "max_lr": "max_lr", "weight_sum": "weight_sum"},
    ),
}

OPTAX_CASES = [case for case in KERAS_CASES if case[0] not in ("ftrl", "adafactor", "muon", "schedule_free_adamw")] + [
    ("adafactor", {}),
    ("adafactor", {"min_dim_size_to_factor": 0}),
    ("adafactor", {"min_dim_size_to_factor": 5, "learning_rate": 2.0, "relative_step": True}),
    ("adafactor", {"beta_2_decay": -0.5, "epsilon_1": 1e-3, "clip_threshold": None, "min_dim_size_to_factor": 4}),
    ("muon", {}),
    ("muon", {"nesterov": False, "rms_rate": None, "exclude_embeddings": False}),
    (
        "muon",
        {
            "muon_a": 3.0,
            "muon_b": -4.0,
            "muon_c": 2.0,
            "ns_steps": 3,
            "momentum": 0.8,
            "adam_lr_ratio": 0.5,
            "adam_beta_1": 0.8,
            "adam_beta_2": 0.9,
            "epsilon": 1e-3,
            "rms_rate": None,
        },
    ),
    ("schedule_free_adamw", {}),
    ("schedule_free_adamw", {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "warmup_steps": 4}),
]


def optax_run(tx, params, grads):
    """[{name: parameter}] and the last state."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {n: jax.numpy.asarray(p) for n, p in params.items()}
    state, history = tx.init(params), []
    for g in grads:
        params, state = step(g, state, params)
        history.append({n: np.asarray(p) for n, p in params.items()})
    return history, state


def with_and_without_decay(cases):
    """Each case with decay and a schedule; the first of each optimizer, the defaults, also without."""
    plain = {name: (name, hyper) for name, hyper in reversed(cases)}.values()
    marks = [pytest.param(case, True, id=f"{case_id(case)}-decay-schedule") for case in cases]
    marks += [pytest.param(case, False, id=case_id(case)) for case in plain]
    return pytest.mark.parametrize(("case", "decay"), marks)


def optax_adafactor_slots(state, params, min_dim_size_to_factor=128):
    """{slot: {name: value}}: our `row` is v_row, or v_col where the first of the two factored axes is the larger."""
    slots = {"row": {}, "column": {}, "velocity": {}}
    for n, p in params.items():
        axes = oracle("adafactor").factored_axes(p.shape, "optax", min_dim_size_to_factor)
        if axes is None:
            slots["velocity"][n] = state.v[n]
            continue
        swapped = p.shape[axes[0]] > p.shape[axes[1]]
        slots["column" if swapped else "row"][n] = state.v_row[n]
        slots["row" if swapped else "column"][n] = state.v_col[n]
    return slots


@with_and_without_decay(OPTAX_CASES)
def test_optax(case, decay):
    optax = pytest.importorskip("optax")
    name, hyper = case
    hyper = dict(hyper)
    rate = schedule if decay and "warmup_steps" not in hyper else hyper.pop("learning_rate", RATE)
    hyper.pop("learning_rate", None)
    wd = 0.1 if decay else 0.0 if name == "adamw" else None
    if name == "muon":
        hyper["adam_weight_decay"] = 0.05 if decay else None
    params, grads = problem(LARGE if case == ("adafactor", {}) else OWN_ARRAYS.get(name, ARRAYS))
    ours = loop.Loop(oracle(name), params, rate, weight_decay=wd, variant="optax", **hyper)
    history = ours.run(grads)
    build, fields = OPTAX[name]
    with peer():
        expected, state = optax_run(build(optax, rate, wd, **hyper), params, grads)
        theirs = {slot: optax.tree.get(state, field) for slot, field in fields.items()}
        if name == "adafactor":
            theirs = optax_adafactor_slots(state[0], params, hyper.get("min_dim_size_to_factor", 128))
    tolerance = OPTAX_TOLERANCE.get(name, TIGHT)
    assert_same_run(history, expected, tolerance)
    for n, slots in ours.slots.items():
        for slot in slots.keys() & theirs.keys():
            value = theirs[slot][n] if isinstance(theirs[slot], dict) else theirs[slot]
            assert_close(slots[slot], value, 10 * tolerance, f"{n}, slot {slot}")


def test_ftrl_has_no_optax_variant():
    params, grads = problem(ARRAYS)
    with pytest.raises(ValueError, match="Keras only"):
        loop.run(oracle("ftrl"), params, grads, RATE, variant="optax")


# --- complex numbers

COMPLEX = ["sgd", "rmsprop", "adam", "adamw", "adadelta", "adagrad", "adamax", "nadam", "lamb"]
COMPLEX_CASES = [case for case in KERAS_CASES if case[0] in COMPLEX]


@pytest.mark.parametrize("variant", ["keras", "optax"])
@pytest.mark.parametrize("case", COMPLEX_CASES, ids=case_id)
def test_complex_turns_with_its_phase(case, variant):
    """Gradients and parameters turned by one phase give the same run, turned: second moments are of |g|."""
    name, hyper = case
    phase = np.exp(0.7j)
    params, grads = problem(ARRAYS)
    options = {"weight_decay": 0.1, "variant": variant, **hyper}
    real = loop.run(oracle(name), params, grads, schedule, **options)
    turned = loop.Loop(oracle(name), {n: phase * p for n, p in params.items()}, schedule, **options)
    history = turned.run([{n: phase * x for n, x in g.items()} for g in grads])
    assert_same_run(history, [{n: phase * p for n, p in ps.items()} for ps in real], TIGHT)
    signed = ("momentum", "average_gradient")
    for slots in turned.slots.values():
        assert all(np.iscomplexobj(value) == (slot in signed) for slot, value in slots.items())


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", {"centered": True, "momentum": 0.5}),
        ("adam", {}),
        ("adam", {"amsgrad": True}),
        ("adagrad", {}),
        ("adamax", {}),
        ("nadam", {}),
        ("lamb", {}),
    ],
)
def test_optax_complex(name, hyper):
    """optax's Adadelta squares g without its modulus, so it is not here."""
    optax = pytest.importorskip("optax")
    params, grads = problem(ARRAYS, imaginary=True)
    history = loop.run(oracle(name), params, grads, RATE, variant="optax", **hyper)
    with peer():
        expected, _ = optax_run(OPTAX[name][0](optax, RATE, None, **hyper), params, grads)
    assert_same_run(history, expected, TIGHT)


# --- the loop

LOOP_CASES = [
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.25},
    {"clipnorm": 0.0, "weight_decay": 0.1, "loss_scale_factor": 8.0},
    {"use_ema": True, "ema_momentum": 0.75},
    {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 3, "global_clipnorm": 2.0, "weight_decay": 0.1},
    {"gradient_accumulation_steps": 3, "clipnorm": 0.5, "weight_decay": 0.1, "loss_scale_factor": 8.0},
]


@pytest.mark.parametrize("options", LOOP_CASES, ids="-".join)
def test_loop_keras(options):
    params, grads = problem(ARRAYS)
    ours = loop.Loop(oracle("nadam"), params, RATE, **options)
    history = ours.run(grads)
    with peer():
        theirs = KerasRun("nadam", params, RATE, **options)
        assert_same_run(history, theirs.run(grads), TIGHT)
        if ours.use_ema:
            for n, average in zip(params, theirs.optimizer._model_variables_moving_average, strict=True):
                assert_close(ours.averages[n], np.asarray(average.value), TIGHT, f"average of {n}")


def nonnegative(p):
    return p * (p >= 0)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_loop_keras_exclusion_constraints_and_missing_gradients():
    """A parameter without a gradient is neither decayed nor constrained, but averaged."""
    params, grads = problem(ARRAYS)
    for g in grads[4:8]:
        g["kernel"] = g["bias"] = None
    for g in grads:
        g["cube"] = None
    options = {"weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 5}
    constraints = {"kernel": nonnegative, "scalar": nonnegative, "cube": nonnegative}
    history = loop.run(
        oracle("nadam"), params, grads, RATE, exclude=("bias", "kernel"), constraints=constraints, **options
    )
    with peer():
        theirs = KerasRun("nadam", params, RATE, constraints, **options)
        theirs.optimizer.exclude_from_weight_decay(var_names=["bias", "nel$"])
        assert_same_run(history, theirs.run(grads), TIGHT)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow)")
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
@pytest.mark.parametrize("bad", [np.inf, np.nan, 0.0])
def test_loop_keras_clips_what_is_not_finite(clip, bad):
    params, grads = problem(ARRAYS)
    grads = [{n: bad * g if n == "bias" or not bad else g for n, g in grads[1].items()}]
    history = loop.run(oracle("sgd"), params, grads, RATE, **{clip: 0.5})
    with peer():
        theirs = KerasRun("sgd", params, RATE, **{clip: 0.5})
        assert_same_run(history, theirs.run(grads), TIGHT)


def test_loop_moves_once_per_real_update():
    """Accumulation equals the same run on the means: schedule, clip, decay, average, overwrite, constraint."""
    params, grads = problem(ARRAYS)
    options = {
        "weight_decay": 0.1,
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "constraints": {"kernel": nonnegative},
    }
    run = functools.partial(loop.run, oracle("adam"), params, learning_rate=schedule, **options)
    micro = run(grads=grads, gradient_accumulation_steps=3)
    means = [{n: sum(g[n] for g in grads[k : k + 3]) / 3 for n in params} for k in range(0, STEPS, 3)]
    assert_same_run(micro[2::3], run(grads=means), TIGHT)
    for k, history in enumerate(micro):
        if k % 3 != 2:
            assert_same_run([history], [params if k < 3 else micro[k // 3 * 3 - 1]], 0)


def test_loop_refuses_two_clips():
    with pytest.raises(ValueError, match="At most one"):
        loop.Loop(oracle("sgd"), {}, RATE, clipnorm=1.0, clipvalue=1.0)


def test_oracles_are_independent():
    """They import NumPy, Python's own modules, and each other; the loop reads the random bits of a key from JAX."""
    folder = pathlib.Path(loop.__file__).parent
    for path in folder.rglob("*.py"):
        more = {"jax"} if path == folder / "loop.py" else set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"numpy", *more, *sys.stdlib_module_names}, path
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module in sys.stdlib_module_names, path
