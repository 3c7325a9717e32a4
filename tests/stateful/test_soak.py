"""Random operations on the facade, beside a plain model of it: Adam in NumPy over a dict of arrays.

`make soak` runs 20,000 of them, and looks at memory and at compilations; the suite runs a few hundred.
"""

import gc
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import jaxopt_keras as jk

STEPS = int(os.environ.get("JAXOPT_KERAS_SOAK", "0"))
SHAPES = [(), (3,), (2, 3)]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
numbers = st.integers(0, 2**31 - 1)


class Facade(RuleBasedStateMachine):
    """Every operation is done to the optimizer and to the model; after each of them they agree."""

    def __init__(self):
        super().__init__()
        self.optimizer, self.variables, self.saved = jk.Adam(0.01, skip_nonfinite=True, flat_state=True), [], None
        self.rate, self.step, self.skipped = 0.01, 0, 0
        self.weights, self.m, self.v = [], [], []
        self.add(0)

    @precondition(lambda self: len(self.variables) < 3)
    @rule(seed=numbers)
    def add(self, seed):
        shape = SHAPES[len(self.variables)]
        x = np.random.default_rng(seed).normal(size=shape)
        self.variables.append(jk.Variable(x.astype(np.float32), name=f"v{len(self.variables)}"))
        self.optimizer.build(self.variables)
        self.weights.append(x.astype(np.float32).astype(float))
        self.m.append(np.zeros(shape))
        self.v.append(np.zeros(shape))

    def grads(self, seed):
        rng = np.random.default_rng(seed)
        return [jnp.asarray(rng.normal(size=v.shape), jnp.float32) for v in self.variables]

    def model_step(self, grads):
        self.step += 1
        correction = np.sqrt(1 - BETA_2**self.step) / (1 - BETA_1**self.step)
        for i, g in enumerate(np.asarray(g, float) for g in grads):
            self.m[i] = BETA_1 * self.m[i] + (1 - BETA_1) * g
            self.v[i] = BETA_2 * self.v[i] + (1 - BETA_2) * np.square(g)
            self.weights[i] = self.weights[i] - self.rate * correction * self.m[i] / (np.sqrt(self.v[i]) + EPSILON)

    @rule(seed=numbers)
    def apply(self, seed):
        grads = self.grads(seed)
        self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))
        self.model_step(grads)

    @rule(factor=st.sampled_from([0.5, 1.0, 2.0]))
    def minimise(self, factor):
        self.optimizer.minimize(lambda: sum(factor * (v * v).sum() / 2 for v in self.variables), self.variables)
        self.model_step([factor * w for w in self.weights])

    @rule(seed=numbers, bad=st.sampled_from([np.nan, np.inf]))
    def not_finite(self, seed, bad):
        grads = self.grads(seed)
        grads[-1] = jnp.full_like(grads[-1], bad)
        self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))
        self.skipped += 1

    @rule(rate=st.sampled_from([0.001, 0.01, 0.1]))
    def set_rate(self, rate):
        self.optimizer.learning_rate = self.rate = rate

    @rule(step=st.integers(0, 1000))
    def set_weights(self, step):
        weights = self.optimizer.get_weights()
        self.optimizer.set_weights([np.array(step), *weights[1:]])
        self.step = step

    @rule()
    def save(self):
        store = {}
        self.optimizer.save_own_variables(store)
        copies = [[x.copy() for x in own] for own in (self.weights, self.m, self.v)]
        self.saved = store, len(self.variables), copies, (self.rate, self.step, self.skipped)

    @precondition(lambda self: self.saved is not None and self.saved[1] == len(self.variables))
    @rule()
    def load(self):
        store, _, (weights, m, v), (self.rate, self.step, self.skipped) = self.saved
        self.optimizer.load_own_variables(store)
        self.m, self.v = [x.copy() for x in m], [x.copy() for x in v]
        self.weights = [x.copy() for x in weights]
        for variable, w in zip(self.variables, self.weights, strict=True):
            variable.assign(w)

    @rule()
    def pickled(self):
        self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        self.optimizer.build(self.variables)

    @rule()
    def bad_input(self):
        for bad in ([np.ones((7, 7))] * len(self.variables), [None] * len(self.variables), ["x"] * len(self.variables)):
            try:
                self.optimizer.apply_gradients(zip(bad, self.variables, strict=True))
            except (ValueError, TypeError):
                continue
            raise AssertionError(f"{bad} was taken")

    @invariant()
    def they_agree(self):
        assert int(self.optimizer.iterations) == self.step and int(self.optimizer.skipped) == self.skipped
        for variable, w, m, v in zip(self.variables, self.weights, self.m, self.v, strict=True):
            slots = [np.array(self.optimizer.get_slot(variable, name)) for name in ("momentum", "velocity")]
            for mine, model in zip([variable.numpy(), *slots], [w, m, v], strict=True):
                np.testing.assert_allclose(mine, model, rtol=2e-3, atol=2e-4)
        for i, variable in enumerate(self.variables):  # the model goes on from here: errors do not add up
            self.weights[i] = variable.numpy().astype(float)
            self.m[i] = np.array(self.optimizer.get_slot(variable, "momentum")).astype(float)
            self.v[i] = np.array(self.optimizer.get_slot(variable, "velocity")).astype(float)


def test_soak():
    length = 50
    sized = settings(
        max_examples=max(STEPS // length, 4),
        stateful_step_count=length,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine = Facade.TestCase
    machine.settings = sized
    compiled = jk.Adam(skip_nonfinite=True)._kernel().compiled.step_donating
    before = compiled._cache_size()  # of other tests, which share the program
    machine().runTest()
    gc.collect()
    assert compiled._cache_size() - before <= 3, "a program for each set of variables"
    assert len(jax.live_arrays()) < 2000
