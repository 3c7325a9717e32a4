"""One compilation: the second call, and every call at another rate, beta or decay, runs the program of the first.

Compiling takes a thousand times as long as a step. A type that changes between calls, or a number that is part of the
program, would make a sweep over learning rates, or a schedule set by hand, crawl without a word.
"""

import dataclasses
import logging

import jax

from jaxopt_keras import Kernel
from tests.laws.cases import AWKWARD, SMALL, few_cases, gradients, kinds, parameters

OPTIONS = {"use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5}


def with_other_numbers(kernel):
    other = lambda x: dataclasses.replace(x, **{name: value / 2 for name, value in x.traced().items()})
    return Kernel(other(kernel.rule), other(kernel.options))


def check(kernel, shapes, caplog):
    grads, fresh, (params, state) = gradients(4, shapes), parameters(shapes), started(kernel, shapes)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        params, state = kernel.step(params, state, grads[1])
        other = with_other_numbers(kernel)
        params, state = other.step(params, state, grads[2])
        other.step(fresh, other.init(fresh), grads[3])
    assert [r.getMessage() for r in caplog.records] == []


def started(kernel, shapes):
    params = parameters(shapes)
    return kernel.step(params, kernel.init(params), gradients(1, shapes)[0])


@kinds
def test_one_compilation(case, caplog):
    check(case.kernel(), SMALL, caplog)


@few_cases
def test_every_stage_and_awkward_trees(case, caplog):
    check(case.kernel(**OPTIONS), AWKWARD, caplog)
