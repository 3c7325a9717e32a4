"""A signal or another thread at any moment of a step loses no array, and every step counts once."""

import _signal
import copy
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_keras as jk
from jaxopt_keras.packing import trees
from jaxopt_keras.stateful import signals

SHAPE = 300, 300


class Interrupt(BaseException):
    """Raised by the handler of the tests."""


class Custom(jk.Optimizer):
    """SGD with a slot, by hooks."""

    def build(self, variables):
        super().build(variables)
        self.sums = self.add_optimizer_variables(variables, "sum")

    def update_step(self, gradient, variable, learning_rate):
        self.sums[self._get_variable_index(variable)].assign_add(gradient)
        variable.assign_sub(learning_rate * gradient)


def sgd():
    return jk.SGD(1.0, momentum=0.0)


OPTIMIZERS = {
    "plain": lambda: jk.SGD(lambda step: jnp.float32(1.0)),
    "adam": lambda: jk.Adam(0.0),
    "loss_scale": lambda: jk.LossScaleOptimizer(sgd(), initial_scale=1.0),
    "multi": lambda: jk.MultiOptimizer(jk.OptimizerMap(sgd(), {"v1": sgd()})),
    "custom": lambda: Custom(1.0),
    "packed": sgd,
}


def made(name, count=3):
    """An optimizer that subtracts 1 in each step, its variables, and the variables and gradients to apply."""
    optimizer, variables = OPTIMIZERS[name](), [jk.Variable(np.zeros(SHAPE, "f"), name=f"v{i}") for i in range(count)]
    given = jk.pack_variables(variables) if name == "packed" else variables
    return optimizer, variables, given, [jnp.ones(v.shape) for v in given]


def check(name, optimizer, variables):
    """All arrays can be read, and each variable shows as many steps as were counted."""
    steps = int(optimizer.optimizers[0].iterations if name == "multi" else optimizer.iterations)
    for v in variables:
        value = v.numpy()
        if name != "adam":
            np.testing.assert_array_equal(value, -steps)
    assert all(np.isfinite(x).all() for x in optimizer.get_weights())
    return steps


@pytest.fixture
def interrupts():
    """Raise `Interrupt` in the main thread when SIGALRM arrives, or SIGINT."""

    def handler(number, frame):
        raise Interrupt

    before = {n: signal.signal(n, handler) for n in (signal.SIGALRM, signal.SIGINT)}
    yield handler
    signal.setitimer(signal.ITIMER_REAL, 0)
    for n, old in before.items():
        signal.signal(n, old)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupt_at_a_random_moment_loses_nothing(name, interrupts):
    optimizer, variables, given, grads = made(name)
    optimizer.apply(grads, given)
    rng, steps = random.Random(0), 0
    for _ in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 5e-3))
            while True:
                optimizer.apply(grads, given)
        except Interrupt:
            pass
        assert signal.getsignal(signal.SIGALRM) is interrupts
        before, steps = steps, check(name, optimizer, variables)
        assert steps >= before
    optimizer.apply(grads, given)
    assert check(name, optimizer, variables) == steps + 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupt_between_the_call_and_its_commit_comes_after_it(name, first, interrupts, monkeypatch):
    optimizer, variables, given, grads = made(name)
    if not first:
        optimizer.apply(grads, given)
    commit = type(optimizer)._accept_results

    def interrupted(self, *results):
        signal.raise_signal(signal.SIGINT)
        commit(self, *results)

    monkeypatch.setattr(type(optimizer), "_accept_results", interrupted)
    with pytest.raises(Interrupt):
        optimizer.apply(grads, given)
    assert check(name, optimizer, variables) == (1 if first else 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_of_one_write_loses_no_other_array(wrapped):
    class Refusing(nnx.Param):
        def set_value(self, value, **kwargs):
            raise ValueError("refused")

    plain = [nnx.Param(jnp.zeros(5)) for _ in range(2)]
    refusing = Refusing(jnp.zeros(5))
    variables = [plain[0], refusing, plain[1]]
    optimizer = sgd()
    if wrapped:
        inner = {id(v): sgd() for v in variables}
        optimizer = jk.MultiOptimizer(lambda v: inner[id(v)])
    optimizer.build(variables)
    for steps in (1, 2):
        with pytest.raises(ValueError, match="refused"):
            optimizer.apply([jnp.ones(5)] * 3, variables)
        assert [v.get_value().tolist() for v in variables] == [[-steps] * 5] * 3
        optimizer.get_weights()


def test_an_interrupt_while_a_buffer_is_read_loses_nothing(interrupts, monkeypatch):
    variables = [jk.Variable(np.zeros(4, "f"), name=f"v{i}") for i in range(3)]
    (buffer,) = jk.pack_variables(variables)
    written = jk.Variable.assign
    for v in variables[:2]:
        written(v, jnp.ones(4))
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        result = original(*args, **kwargs)
        if len(calls) == 2:
            raise Interrupt
        return result

    original = trees.Part.write
    monkeypatch.setattr(trees.Part, "write", interrupted)
    with pytest.raises(Interrupt):
        buffer.numpy()
    monkeypatch.undo()
    assert buffer.numpy().tolist() == [1.0] * 8 + [0.0] * 4


# --- the public section -----------------------------------------------------------------------------------------------


def test_signals_run_at_the_end_of_a_section(interrupts):
    done = []
    with pytest.raises(Interrupt):
        with jk.uninterrupted():
            with jk.uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                done.append("inner")
            time.sleep(0.01)
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is interrupts


def test_no_signal_is_dropped_if_several_arrive(interrupts):
    seen = []

    def record(number, frame):
        seen.append(number)
        raise Interrupt

    signal.signal(signal.SIGUSR1, record)
    signal.signal(signal.SIGINT, record)
    try:
        with pytest.raises(Interrupt), jk.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGUSR1)
            assert not seen
        assert sorted(seen) == sorted([signal.SIGINT, signal.SIGUSR1])
        assert signal.getsignal(signal.SIGUSR1) is record
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
@pytest.mark.parametrize("moment", range(4))
def test_a_signal_at_the_border_of_a_section_leaves_no_other_handler(moment, number, interrupts, monkeypatch):
    """`moment`: the calls of `signal.signal` before it, two at each border."""
    calls = []

    def set_handler(*args):
        _signal.signal(*args)
        calls.append(args)
        if len(calls) == moment + 1:
            signal.raise_signal(number)

    monkeypatch.setattr(signals, "_signal", types.SimpleNamespace(signal=set_handler, getsignal=_signal.getsignal))
    done = []
    with pytest.raises(Interrupt), jk.uninterrupted():
        done.append(moment)
    assert bool(done) == (moment > 1)
    for n in signal.SIGINT, signal.SIGALRM:
        assert signal.getsignal(n) is interrupts


def test_an_error_in_a_section_passes_and_a_handler_that_is_set_there_stays(interrupts):
    other = lambda number, frame: None
    with pytest.raises(KeyError), jk.uninterrupted():
        signal.signal(signal.SIGALRM, other)
        raise KeyError
    assert signal.getsignal(signal.SIGALRM) is other
    assert signal.getsignal(signal.SIGINT) is interrupts


def test_a_section_outside_the_main_thread_changes_no_handler(interrupts):
    seen = []

    def run():
        with jk.uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [interrupts]


def test_a_pure_loop_with_sections_can_be_interrupted_anywhere(interrupts):
    kernel, params = jk.sgd(1.0), jnp.zeros(SHAPE)
    state, grads = kernel.init(params), jnp.ones(SHAPE)
    params, state = kernel.step(params, state, grads)
    rng = random.Random(0)
    for _ in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 3e-3))
            while True:
                with jk.uninterrupted():
                    params, state = kernel.step(params, state, grads)
        except Interrupt:
            pass
        np.testing.assert_array_equal(params, -int(state.count))


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def switching():
    """Make Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*functions, seconds=1.0):
    """Repeat each function in a thread of its own. Raise what any of them raised; return how often each has run."""
    stop, errors, counts = threading.Event(), [], [0] * len(functions)

    def run(i):
        try:
            while not stop.is_set():
                functions[i]()
                counts[i] += 1
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return counts


def saved(optimizer):
    with tempfile.TemporaryDirectory() as folder:
        jk.checkpoint.save(f"{folder}/x.safetensors", optimizer)


READS = {
    "variables": lambda o, vs: [v.numpy() for v in vs],
    "values": lambda o, vs: [np.asarray(x) for x in [v.value for v in vs]],
    "views": lambda o, vs: [v.numpy() for v in o.variables],
    "weights": lambda o, vs: o.get_weights(),
    "state": lambda o, vs: o.state,
    "repr": lambda o, vs: (repr(o), repr(vs[0])),
    "copies": lambda o, vs: (copy.copy(o), copy.deepcopy(vs)),
    "pickles": lambda o, vs: pickle.dumps([o if not isinstance(o, Custom) else o.get_weights(), vs]),
    "checkpoint": lambda o, vs: jk.checkpoint.to_dict(o),
    "file": lambda o, vs: saved(o),
    "rate": lambda o, vs: float(o.learning_rate),
    "settings": lambda o, vs: setattr(o, "learning_rate", 1.0),
}


@pytest.mark.parametrize("name", ["plain", "loss_scale", "multi", "packed", "custom"])
@pytest.mark.parametrize("read", READS)
def test_reading_while_another_thread_steps(name, read, switching):
    if name == "multi" and read in ("rate", "settings"):
        pytest.skip("has no rate")
    if name == "plain" and read == "pickles":
        pytest.skip("its rate is a lambda")
    optimizer, variables, given, grads = made(name, count=2)
    optimizer.apply(grads, given)
    together(lambda: optimizer.apply(grads, given), lambda: READS[read](optimizer, variables), seconds=0.3)
    check(name, optimizer, variables)


def test_one_optimizer_in_two_threads_makes_every_step(switching):
    optimizer, variables, given, grads = made("plain")
    counts = together(*[lambda: optimizer.apply(grads, given)] * 2, seconds=0.5)
    assert check("plain", optimizer, variables) == sum(counts)


@pytest.mark.parametrize("outer", ["loss_scale", "multi"])
def test_optimizers_that_share_variables_and_a_wrapper_beside_its_inner_optimizer(outer, switching):
    first, variables, _, grads = made(outer)
    inner, second = (first.inner_optimizer if outer == "loss_scale" else first.optimizers[0]), sgd()
    for optimizer in (first, second):
        optimizer.apply(grads, variables)
    mine = [v for v in variables if id(v) in inner._keys]
    steps = [(first, variables), (inner, mine), (second, variables)]
    counts = together(*[lambda o=o, vs=vs: o.apply(grads[: len(vs)], vs) for o, vs in steps], seconds=0.5)
    np.testing.assert_array_equal(mine[0].numpy(), -(2 + sum(counts)))


def test_assigned_values_and_steps_of_another_thread_are_all_kept(switching):
    optimizer, variables, given, grads = made("packed", count=2)
    optimizer.apply(grads, given)
    assign = lambda: variables[0].assign(variables[0].value)
    together(lambda: optimizer.apply(grads, given), assign, lambda: given[0].numpy(), seconds=0.5)
    steps = int(optimizer.iterations)
    np.testing.assert_array_equal(variables[1].numpy(), -steps)
