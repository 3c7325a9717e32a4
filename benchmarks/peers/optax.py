"""optax as users call it: `update` and `apply_updates` in one jitted, donated function."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import models
from benchmarks.parity.optax import Optax
from benchmarks.parity.peer import Absent, load
from benchmarks.peers.absent import absent
from benchmarks.problem import Problem, Rows
from benchmarks.runs import Implementation, Loop, Run, Wish

NAME = "optax"


def available(platform: str) -> str | None:
    return absent(Optax, "optax")


def implementations(wish: Wish) -> list[Implementation]:
    try:
        Optax().terms(wish.rule)
    except Absent as reason:
        return [Implementation(NAME, NAME, run, refused=str(reason))]
    if wish.workload.kind == "rows":
        return [Implementation("optax, dense", NAME, run, copies=4)]
    if wish.workload.kind == "training":
        return [Implementation(NAME, NAME, run)]
    return [
        Implementation(NAME, NAME, run),
        Implementation("optax, not donated", NAME, functools.partial(run, donate=False), copies=6),
    ]


def transformation(problem: Problem) -> Any:
    """Return the optimizer, followed by a decoupled weight decay if ours has one and optax's has none."""
    peer, case = Optax(), problem.case("optax")
    tx, *decay = peer.decayed(case)
    return peer.optax.chain(tx, *decay) if case.options.get("weight_decay") and decay else tx


def dense(given: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    def one(g: Any, p: Any) -> Any:
        return jnp.zeros_like(p).at[g.indices].add(g.values) if isinstance(g, Rows) else g

    return {name: one(g, params[name]) for name, g in given.items()}


def run(problem: Problem, donate: bool = True) -> Run:
    tx, apply_updates, params = transformation(problem), load("optax").apply_updates, problem.start()
    training = problem.workload.kind == "training"

    @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
    def step(params: Any, state: Any, given: Any) -> Any:
        grads = jax.grad(models.loss)(params, given) if training else dense(given, params)
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    # Copied, since some initial states hold the parameters themselves, which cannot be donated twice.
    init = jax.jit(lambda params: jax.tree.map(jnp.copy, tx.init(params)))
    return Loop(step, params, init(params), problem.on_device)
