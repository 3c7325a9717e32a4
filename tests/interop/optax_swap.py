"""Runs a module of optax's own tests, with its optimizers or with our kernels in their place.

    python -m tests.interop.optax_swap optax._src.alias_test --swapped --only "opt_name='adam'"

prints, as JSON, what went wrong in each test: "" if nothing, null if it skipped itself. Only tests of what `SWAPPED`
replaces are run.
"""

import argparse
import importlib
import inspect
import json
import os
import re
import sys
import unittest
from collections.abc import Callable, Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # for the tests of sharding

import jax
import jax.numpy as jnp
import optax
from optax._src import alias

import jaxopt_keras as jk


def _form(slot: str, dtype: Any) -> Any:
    return None if dtype is None else {slot: jnp.dtype(dtype).name}


def adadelta(learning_rate=None, rho=0.9, eps=1e-6, weight_decay=0.0):
    rate = 1.0 if learning_rate is None else learning_rate
    return jk.adadelta(rate, rho, eps, weight_decay, variant="optax")


def adafactor(
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    clipping_threshold=1.0,
    weight_decay_rate=None,
    eps=1e-30,
):
    return jk.adafactor(
        1.0 if learning_rate is None else learning_rate,
        beta_2_decay=-decay_rate,
        epsilon_1=eps,
        clip_threshold=clipping_threshold,
        weight_decay=weight_decay_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        variant="optax",
    )


def adagrad(learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    return jk.adagrad(learning_rate, initial_accumulator_value, eps, variant="optax")


def adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return jk.adam(learning_rate, b1, b2, eps, variant="optax", state_dtype=_form("momentum", mu_dtype))


def adamax(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return jk.adamax(learning_rate, b1, b2, eps, variant="optax")


def adamaxw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    return jk.adamax(learning_rate, b1, b2, eps, weight_decay, variant="optax")


def adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None, weight_decay=1e-4):
    form = _form("momentum", mu_dtype)
    return jk.adamw(learning_rate, weight_decay, b1, b2, eps, variant="optax", state_dtype=form)


def amsgrad(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return jk.adam(learning_rate, b1, b2, eps, amsgrad=True, variant="optax")


def lamb(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0):
    return jk.lamb(learning_rate, b1, b2, eps, weight_decay, variant="optax")


def lion(learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    return jk.lion(learning_rate, b1, b2, weight_decay, variant="optax")


def nadam(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return jk.nadam(learning_rate, b1, b2, eps, variant="optax")


def nadamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    return jk.nadam(learning_rate, b1, b2, eps, weight_decay, variant="optax")


def rmsprop(learning_rate, decay=0.9, eps=1e-8, centered=False, momentum=None):
    momentum = 0.0 if momentum is None else momentum
    return jk.rmsprop(learning_rate, decay, momentum, eps, centered, variant="optax")


def sgd(learning_rate, momentum=None, nesterov=False, accumulator_dtype=None):
    momentum = 0.0 if momentum is None else momentum
    return jk.sgd(learning_rate, momentum, nesterov, variant="optax", state_dtype=_form("momentum", accumulator_dtype))


SWAPPED: dict[str, Callable[..., jk.Kernel]] = {
    f.__name__: f
    for f in (
        adadelta, adafactor, adagrad, adam, adamax, adamaxw, adamw, amsgrad, lamb, lion, nadam, nadamw, rmsprop, sgd,
    )
}  # fmt: skip
_NAMES = "|".join(SWAPPED)
OF_SWAPPED = re.compile(rf"opt_name='({_NAMES}|sgd_mom)'|^test_\w+_({_NAMES})2?$")


def swap() -> None:
    """Puts our kernels, under optax's names and arguments, into optax. Arguments that none of its tests gives are left
    out. Defaults are optax's."""
    for name, function in SWAPPED.items():
        for module in (optax, alias):
            theirs = inspect.signature(getattr(module, name)).parameters
            if not inspect.signature(function).parameters.keys() <= theirs.keys():
                raise TypeError(f"optax.{name} has other arguments: {[*theirs]}")
            setattr(module, name, function)


def name_of(test: unittest.TestCase) -> str:
    """The test's method and parameters, without counters and addresses, which change from one version to the next."""
    name = str(test).rsplit(" (", 1)[0]
    method, parameters = name.split(" ", 1) if " " in name else (name, "")
    parameters = re.sub(r"<function (\w+) at \w+>|<class '[\w.]*?(\w+)'>", r"\1\2", parameters)
    return f"{method.rstrip('0123456789')} {parameters}" if parameters else method


def flattened(suite: Any) -> Iterator[unittest.TestCase]:
    for test in suite:
        yield from flattened(test) if isinstance(test, unittest.TestSuite) else [test]


class Outcomes(unittest.TestResult):
    """Result with the first error of each test or of its subtests, by the test's name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str | None] = {}

    def startTest(self, test):
        self.found[name_of(test)] = ""

    def addSkip(self, test, reason):
        name = name_of(getattr(test, "test_case", test))  # of a subtest
        self.found[name] = self.found[name] or None

    def _failed(self, test: unittest.TestCase, error: Any) -> None:
        name = name_of(test)
        self.found[name] = self.found[name] or f"{error[0].__name__}: {error[1]}"

    def addError(self, test, err):
        self._failed(test, err)

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._failed(test, err)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--swapped", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if given.swapped:
        swap()
    jax.__version__ = "0.9"  # the tests compare versions as text, and take 0.10 for older than 0.7.2
    module, result = importlib.import_module(given.module), Outcomes()
    for test in flattened(unittest.defaultTestLoader.loadTestsFromModule(module)):
        if OF_SWAPPED.search(name_of(test)) and re.search(given.only, name_of(test)):
            test.run(result)
    json.dump(result.found, sys.stdout)


if __name__ == "__main__":
    main()
