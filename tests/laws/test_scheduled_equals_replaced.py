"""Scheduled equals replaced: a number that is a function of the step is that number, replaced before each step.

So decays, weight decay, limits and all other floats may change during a training, and changing them compiles nothing:
one program takes whatever the functions say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import Kernel
from tests.laws.cases import assert_close, gradients, kinds, parameters

STEPS = 3
OPTIONS = {"clipnorm": 0.5, "use_ema": True, "loss_scale_factor": 2.0, "skip_spikes": 9.0}
TABLES = ([0.5, 0.25, 0.75], [1.5, 2.0, 1.25])  # exact in every dtype; of every range one list


def tables(group):
    """The values of each number at each step."""
    ranges = {name: group.declared()[name].range for name in group.traced()}
    return {name: next(t for t in TABLES if all(x in r for x in t)) for name, r in ranges.items()}


def function(table):
    return lambda step: jnp.asarray(table)[step]


def scheduled(group, changing):
    return group.bind({name: function(table) for name, table in changing.items()})


@kinds
@pytest.mark.parametrize("face", ["pure", "stateful"])
def test_every_number_at_once(case, face):
    numbers = case.kernel(**OPTIONS)
    changing = tables(numbers.rule), tables(numbers.options)
    rule, options = scheduled(numbers.rule, changing[0]), scheduled(numbers.options, changing[1])
    params, grads = parameters(), gradients(STEPS)
    expected, state = params, numbers.replace(**at(changing, 0)).init(params)
    for i, g in enumerate(grads):
        expected, state = numbers.replace(**at(changing, i)).step(expected, state, g, donate=False)
    if face == "pure":
        kernel = Kernel(rule, options)
        found = kernel.init(params)
        for g in grads:
            params, found = kernel.step(params, found, g, donate=False)
        assert kernel.compiled.step_donating._cache_size() + kernel.compiled.step._cache_size() == 1
        assert_close((params, found), (expected, state), STEPS)
        assert_close(
            kernel.averaged(params, found), numbers.replace(**at(changing, 2)).averaged(expected, state), STEPS
        )
    else:
        variables = {name: jk.Variable(p, name=name) for name, p in params.items()}
        options = {name: x for name, x in vars(options).items() if x != getattr(jk.Options(), name)}
        optimizer = jk.Optimizer.from_rule(rule, **options)
        for g in grads:
            optimizer.apply_gradients((g[name], v) for name, v in variables.items())
        assert_close({name: v.value for name, v in variables.items()}, expected, STEPS)
        used = {n: float(getattr(x, "value", x)) for n, x in optimizer.state.hyperparams.items()}
        assert used == at(changing, STEPS - 1)


def at(changing, i):
    return {name: table[i] for group in changing for name, table in group.items()}


def test_state_tells_the_numbers_of_the_last_step():
    kernel = jk.adamw(0.1, beta_1=function([0.5, 0.25]), weight_decay=function([0.1, 0.2]), inject_hyperparams=True)
    params = parameters()
    state = kernel.init(params)
    for beta, decay in ((0.5, 0.1), (0.25, 0.2)):
        params, state = kernel.step(params, state, params, donate=False)
        assert float(state.hyperparams["beta_1"].value) == beta
        assert float(state.hyperparams["weight_decay"]) == np.float32(decay)
    saved = jk.checkpoint.to_dict(state)
    assert float(saved["hyper/beta_1"]) == 0.25
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, jk.checkpoint.from_dict(kernel, params, saved)))


def test_a_function_gets_the_step_as_an_array():
    kernel = jk.adam(0.1, beta_1=lambda step: 0.5 / (1 + step.astype(jnp.float32)))
    state = kernel.init(parameters())
    kernel.step(parameters(), state, parameters())
    assert kernel.describe(parameters()).groups


def test_a_plan_names_schedules():
    kernel = jk.adamw(jk.schedules.CosineDecay(0.1, 10), weight_decay=jk.schedules.CosineDecay(0.1, 10))
    (group,) = kernel.describe(parameters()).groups
    assert (group.kind.rate, group.kind.decay) == ("CosineDecay", "CosineDecay")


def test_loss_scale_by_a_schedule():
    kernel = jk.sgd(0.1, loss_scale_factor=function([2.0, 4.0]))
    params = parameters()
    state = kernel.init(params)
    assert float(kernel.scale_loss(3.0, state)) == 6.0
    _, state = kernel.step(params, state, params, donate=False)
    assert float(kernel.scale_loss(3.0, state)) == 12.0


def test_only_one_number_for_each_step():
    with pytest.raises(ValueError, match="`beta_1` must be one number. Received: an array of shape"):
        jk.adam(beta_1=lambda step: jnp.ones(2)).init(parameters())


def test_numbers_of_a_fallback():
    params, schedule = {"bias": jnp.ones(3)}, function([0.5, 0.25])
    kernel = jk.muon(0.1, adam_beta_1=schedule, adam_weight_decay=schedule)
    other, p, q = jk.adam(0.1, beta_1=schedule, weight_decay=schedule), params, params
    state, s = kernel.init(p), other.init(q)
    for _ in range(2):
        p, state = kernel.step(p, state, params, donate=False)
        q, s = other.step(q, s, params, donate=False)
    assert_close(p, q, 2)


# --- the stateful face


def test_functions_are_set_replaced_saved_and_copied():
    v, decay = jk.Variable(np.ones(2), name="v"), jk.schedules.PolynomialDecay(0.5, 10, 0.25)
    optimizer = jk.Adam(0.1, beta_1=decay)
    assert "beta_1=PolynomialDecay" in repr(optimizer)
    config = optimizer.get_config()
    assert config["beta_1"]["class_name"] == "PolynomialDecay"
    again = jk.deserialize(jk.serialize(optimizer))
    assert again.get_config() == config and "beta_1=PolynomialDecay" in repr(again)
    optimizer.apply_gradients([(np.ones(2), v)])
    assert float(optimizer.beta_1) == float(decay(1))
    optimizer.beta_1 = lambda: 0.125
    assert float(optimizer.beta_1) == 0.125
    with pytest.warns(UserWarning, match="`beta_1` is a function, which a config cannot hold"):
        assert "beta_1" not in optimizer.get_config()
    optimizer.beta_1, optimizer.weight_decay = 0.75, decay
    assert optimizer.beta_1 == 0.75 and float(optimizer.weight_decay) == float(decay(1))
    optimizer.weight_decay = None
    assert optimizer.weight_decay is None and optimizer.get_config()["beta_1"] == 0.75


def test_another_function_compiles_nothing():
    v, optimizer = jk.Variable(np.ones(2), name="v"), jk.Adam(0.1, beta_1=lambda step: 0.5)
    for function in (lambda step: 0.5, lambda step: 0.25, lambda: 0.75, 0.5):
        optimizer.beta_1 = function
        optimizer.apply_gradients([(np.ones(2), v)])
    assert optimizer._kernel().compiled.step_donating._cache_size() == 1


def test_in_the_keras_face():
    keras_face = pytest.importorskip("jaxopt_keras.interop.keras")
    optimizer = keras_face.Adam(0.1, beta_1=jk.schedules.PolynomialDecay(0.5, 10, 0.25))
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config()["beta_1"]["class_name"] == "PolynomialDecay" and float(again.beta_1) == 0.5
