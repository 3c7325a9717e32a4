"""Keras 3 on the JAX backend: `apply`, and `stateless_apply` jitted and donated."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.keras import Keras
from benchmarks.parity.peer import Absent
from benchmarks.peers.absent import absent
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Loop, Run, Wish

NAME = "keras"


def available(platform: str) -> str | None:
    return absent(Keras, "keras")


def implementations(wish: Wish) -> list[Implementation]:
    if wish.workload.kind == "rows":
        return [Implementation(NAME, NAME, Eager, refused="not compared: its gradients of rows are BCOO arrays")]
    if wish.workload.kind == "training":
        return [Implementation(NAME, NAME, Eager, refused="not compared: the model is in plain JAX")]
    try:
        Keras().terms(wish.rule)
    except Absent as reason:
        return [Implementation(NAME, NAME, Eager, refused=str(reason))]
    return [
        Implementation("keras, jitted", NAME, jitted, "keras"),
        Implementation("keras, eager", NAME, Eager, "keras", copies=5),
    ]


def built(problem: Problem) -> tuple[Any, list[Any]]:
    """Return the optimizer and its variables."""
    peer, case = Keras(), problem.case("keras")
    known = peer.terms(problem.rule)[0].names
    case = replace(case, hyper={name: x for name, x in case.hyper.items() if name in known})
    variables = [  # names may contain no slash
        peer.keras.Variable(p, dtype=p.dtype.name, name=name.replace("/", ".")) for name, p in problem.params.items()
    ]
    optimizer = peer.optimizer(case)
    optimizer.build(variables)
    return optimizer, variables


class Eager:
    """A loop over `optimizer.apply(grads, variables)`."""

    def __init__(self, problem: Problem) -> None:
        self.optimizer, self.variables = built(problem)
        self.given, self.count = [list(grads.values()) for grads in problem.on_device], 0

    def step(self) -> None:
        self.optimizer.apply(self.given[self.count % len(self.given)], self.variables)
        self.count += 1

    def block(self) -> None:
        jax.block_until_ready([v.value for v in (*self.variables, *self.optimizer.variables)])

    def held(self) -> int:
        return sum(v.value.nbytes for v in (*self.variables, *self.optimizer.variables))

    def params(self) -> dict[str, NDArray[Any]]:
        return {v.name.replace(".", "/"): np.asarray(v.value) for v in self.variables}


class Jitted(Loop):
    names: list[str]

    def params(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(p) for name, p in zip(self.names, self.carried[0], strict=True)}


def jitted(problem: Problem) -> Run:
    optimizer, variables = built(problem)

    def step(params: Any, state: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(state, grads, params)

    values, state = [v.value for v in variables], [v.value for v in optimizer.variables]
    given = [list(grads.values()) for grads in problem.on_device]
    run = Jitted(jax.jit(step, donate_argnums=(0, 1)), values, state, given)
    run.names = list(problem.params)
    return run
