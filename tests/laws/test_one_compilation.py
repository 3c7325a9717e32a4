"""One compilation: the second call, and every call at another rate, beta or decay, runs the program of the first.

Compiling takes a thousand times as long as a step. A type that changes between calls, or a number that is part of the
program, would make a sweep over learning rates, or a schedule set by hand, crawl without a word.
"""

import dataclasses
import logging

import jax

from jaxopt_keras import Kernel
from tests.laws.cases import AWKWARD, gradients, parameters, switched_cases

OPTIONS = {"use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5}


def with_other_numbers(kernel):
    other = lambda x: dataclasses.replace(x, **{name: value / 2 for name, value in x.traced().items()})  # noqa: E731
    return Kernel(other(kernel.rule), other(kernel.options))


@switched_cases
def test_one_compilation(case, caplog):
    kernel, grads = case.kernel(**OPTIONS), gradients(4, AWKWARD)
    params, state = kernel.step(parameters(AWKWARD), kernel.init(parameters(AWKWARD)), grads[0])
    fresh = parameters(AWKWARD)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        params, state = kernel.step(params, state, grads[1])
        other = with_other_numbers(kernel)
        params, state = kernel.step(params, state._replace(hyper=other.hyper()), grads[2])
        other.step(fresh, other.init(fresh), grads[3])
    assert [r.getMessage() for r in caplog.records] == []
