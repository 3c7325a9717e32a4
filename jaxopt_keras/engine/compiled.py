"""The compiled forms of programs: of equal programs they are the same, so that what is compiled is shared."""

import functools
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """The jitted forms of one program, shared by all optimizers that differ only in run-time values."""

    init: Any
    update: Any
    step: Any
    step_donating: Any
    averaged: Any


def compiled(program: Any) -> Compiled:
    """The forms of one program, which nobody shares yet."""
    # Donated arguments come in the order of the outputs: jit pairs buffers in that order, and would copy otherwise.
    return Compiled(
        init=jax.jit(program.init),
        update=jax.jit(program.update),
        step=jax.jit(program.step, static_argnames="reduce"),
        step_donating=jax.jit(program.step, static_argnames="reduce", donate_argnums=(0, 1)),
        averaged=jax.jit(program.averaged),
    )


@functools.lru_cache(maxsize=4096)
def _interned(program: Any) -> Compiled:
    return compiled(program)


def shared(program: Any) -> Compiled:
    """The compiled forms of a program, or of an equal one."""
    try:
        return _interned(program)
    except TypeError:  # a rule with an unhashable field: its programs are its own
        return compiled(program)
