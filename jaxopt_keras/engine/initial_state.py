"""The initial state of a tree of parameters, by the compiled program that is fastest for it.

One program for a thousand arrays is traced and compiled array by array, which takes a second. So many arrays of few
shapes have one small program for each shape, which is called for each array.
"""

import dataclasses
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.compiled import Compiled, shared
from jaxopt_keras.engine.core import Layout
from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.places import Places, platform
from jaxopt_keras.packing.trees import Packed

MANY = 50  # arrays of one shape: a small program takes as long to compile as their part of a large one


def initial_state(program: Any, compiled: Compiled, params: Any, hyper: dict[str, Any]) -> State:
    """Return `program.init(params, hyper)`, compiled; no array shares a buffer with another one, or with `params`.

    Args:
        program: a skeleton, and `compiled` its functions.
        params: arrays, traced ones too, or `jax.ShapeDtypeStruct`s, for which the state holds such structs.
    """
    leaves, places = jax.tree.leaves(params), Places.of(params)
    if any(isinstance(p, jax.ShapeDtypeStruct) for p in leaves):
        return jax.eval_shape(compiled.init_at(places), params, hyper)
    if places != Places(platform()):
        return compiled.init_at(places)(params, hyper)
    if not all(map(_is_on_one_device, leaves)):
        return compiled.init(params, hyper)
    floats = [p for p in leaves if is_inexact(p)]
    few_shapes = len(floats) > MANY * len({(p.shape, p.dtype) for p in floats})
    if few_shapes and _is_by_array(program) and not isinstance(params, Packed):
        return _init_each(program, params, hyper)
    return compiled.init_on_one_device(params, hyper)


def _is_on_one_device(p: Any) -> bool:
    return isinstance(p, jax.Array) and not isinstance(p, Tracer) and isinstance(p.sharding, SingleDeviceSharding)


def _is_by_array(program: Any) -> bool:
    """Whether the slots of an array depend on nothing else, not even on its path."""
    return isinstance(program, Program) and program.core.elementwise and not program.options.flat_state


def _init_each(program: Program, params: Any, hyper: dict[str, Any]) -> State:
    """Initialize each array by itself."""
    layout, leaves = Layout.read(params, program.options)
    without_paths = program.options.bind({"exclude_from_weight_decay": ()})
    single = shared(dataclasses.replace(program, options=without_paths))
    states = [single.init_on_one_device(p, hyper) for p in leaves]
    slots = {name: layout.unflatten([state.slots[name] for state in states]) for name in states[0].slots}
    return states[0]._replace(slots=slots)
