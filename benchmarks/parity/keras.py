"""Keras 3 as a peer."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity.cases import Case, Rate, Terms
from benchmarks.parity.histories import Arrays, History, to_numpy
from benchmarks.parity.peer import Absent, default_promotion, load, parameters_of
from jaxopt_keras.language.rule import Rule


class Keras:
    """The class of the same name in `keras.optimizers`, on the JAX backend."""

    def __init__(self) -> None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        self.keras = load("keras")
        self.version = self.keras.__version__
        if (backend := self.keras.config.backend()) != "jax":
            raise Absent(f"keras runs on {backend}: set KERAS_BACKEND=jax")

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        counterpart = getattr(self.keras.optimizers, optimizer.__name__, None)
        if counterpart is None:
            raise Absent("none in keras.optimizers")
        return [Terms("keras", {*parameters_of(counterpart), "exclude_from_weight_decay", "schedule"})]

    def run(self, case: Case) -> History:
        with default_promotion():
            variables = [self.keras.Variable(p, dtype=p.dtype.name, name=name) for name, p in case.params.items()]
            optimizer = self.optimizer(case)
            optimizer.build(variables)

            def step(carry: Any, grads: Arrays) -> Any:
                params, state = carry
                params, state = optimizer.stateless_apply(state, [grads[v.name] for v in variables], params)
                return (params, state), params

            start = [v.value for v in variables], [v.value for v in optimizer.variables]
            stacked = {v.name: np.stack([grads[v.name] for grads in case.grads]) for v in variables}
            history = jax.lax.scan(step, start, stacked)[1]
        return [
            to_numpy({v.name: p[i] for v, p in zip(variables, history, strict=True)}) for i in range(len(case.grads))
        ]

    def optimizer(self, case: Case) -> Any:
        make, options = getattr(self.keras.optimizers, case.optimizer.__name__), dict(case.options)
        excluded = options.pop("exclude_from_weight_decay", None)
        optimizer = make(learning_rate=self.rate(case.rate), **case.hyper, **options)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=list(excluded))
        return optimizer

    def rate(self, rate: Rate) -> Any:
        if not callable(rate):
            return rate

        class Schedule(self.keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step: Any) -> Any:
                return rate(jnp.asarray(step))

        return Schedule()
