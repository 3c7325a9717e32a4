"""Validation of the arguments of kernels, and construction of their programs."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.compiled import is_donated
from jaxopt_keras.engine.cores.leafwise import KEY, Leafwise
from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.language.hyperparameters import schedules_of
from jaxopt_keras.language.modifier import is_joint
from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.language.second import is_searching, merges
from jaxopt_keras.schedules import is_schedule


def program_of(rule: Any, options: Options) -> Any:
    """The program of a rule or a core.

    Raises:
        TypeError, ValueError: if the rule does not support the options.
    """
    core = Leafwise(rule) if isinstance(rule, Rule) else rule
    rule = getattr(core, "rule", core)
    if isinstance(core, Leafwise) and KEY in rule.takes:
        core = dataclasses.replace(core, seed=options.seed or 0)
    for name, function in (core.schedules() | schedules_of(options)).items():
        if not is_schedule(function):
            raise TypeError(
                f"`{name}` must be a number or a function of the step. Received: a function without arguments. "
                "Only the stateful face can call one, before each step."
            )
    _check_storage(rule, options)
    if options.own_counts:
        core = dataclasses.replace(_countable(core), own_counts=True)
    if options.sparse == "lazy" and (getattr(rule, "grain", "") != "element" or is_joint(rule)):
        raise ValueError(
            f'`sparse="lazy"` updates single rows, and {type(rule).__name__} may need whole arrays. '
            'Received: sparse="lazy". Use `sparse="dense"`.'
        )
    if core.needs_function:
        _check_second(rule, options)
    plain = Program(core, options)
    if isinstance(options.inject_hyperparams, tuple):
        known = core.arrays() | options.arrays() | plain.schedules()
        for name in set(options.inject_hyperparams) - known.keys():
            raise ValueError(
                f"`inject_hyperparams` must name run-time hyperparameters of {type(rule).__name__}: {sorted(known)}. "
                f"Received: {name!r}, which does not exist, or is off."
            )
    return Offloaded(plain, options.offload) if options.offload else plain


UNSEARCHED = ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "constraints", "gradient_accumulation_steps")
"""Options whose steps a search would not see."""


def _check_second(rule: Any, options: Options) -> None:
    """Raises a ValueError if a rule that takes a second gradient does not support the options."""
    name = type(rule).__name__
    if options.sparse == "lazy":
        raise ValueError(
            f'{name} takes a second gradient, of whole arrays. Received: sparse="lazy". Use `sparse="dense"`.'
        )
    if is_searching(rule) and (name := next((n for n in UNSEARCHED if getattr(options, n)), None)):
        raise ValueError(
            f"{type(rule).__name__} searches along the loss as it is. Received: {name}={getattr(options, name)!r}. "
            "Leave it out; a weight decay may be a part of the loss."
        )
    if options.gradient_accumulation_steps and not merges(rule):
        raise ValueError(
            f"{name} cannot accumulate gradients: its update needs the second one too. Received: "
            "gradient_accumulation_steps. Leave it out, and average gradients in the loss function."
        )


def _countable(core: Any) -> Leafwise:
    """The core, if each of its arrays can count its own updates; otherwise raises a TypeError or a ValueError."""
    if not isinstance(core, Leafwise):
        raise TypeError(
            f"`own_counts` needs a `Rule`. Received: own_counts=True for {type(core).__name__}, whose count is its own"
        )
    if core.rule.scalars() is not None:
        raise ValueError(
            f"`own_counts` needs a rule without numbers for all arrays. Received: own_counts=True for "
            f"{type(core.rule).__name__}, which keeps {[*core.scalar_names({})]}. Leave it out, or use another rule."
        )
    return core


def _check_storage(rule: Any, options: Options) -> None:
    """Raises an error if `state_dtype` names a slot that does not exist, or if the core does not declare its slots."""
    wanted = options.state_dtype
    if wanted is None:
        return
    if not isinstance(rule, Rule):
        raise TypeError(
            f"`state_dtype` needs a `Rule`, which declares its slots. Received: state_dtype={wanted!r} for "
            f"{type(rule).__name__}"
        )
    known = rule.slots()
    for slot, _ in wanted if isinstance(wanted, tuple) else ():
        if slot not in known:
            raise ValueError(f"`{slot}` is no slot of {type(rule).__name__}. Its slots are {[*known]}")


def explained(error: Exception, **trees: Any) -> Exception:
    """An error that names the first leaf that is no array, or was donated; `error` itself if there is none."""
    arrays = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, int, float, complex)
    for name, tree in trees.items():
        for path, leaf in leaves_by_path(tree):
            if not isinstance(error, TypeError):
                if is_donated(leaf) and "deleted" in str(error):
                    return RuntimeError(
                        f"`{name}` must hold arrays that exist. Received: one at `{path}` that was donated "
                        "to an earlier `step`, or deleted. Keep the arrays that `step` returned, or pass it "
                        "`donate=False`."
                    )
            elif not isinstance(leaf, arrays):
                hint = ". For an Equinox module, pass its arrays: `eqx.filter(model, eqx.is_inexact_array)`."
                return TypeError(
                    f"`{name}` must be a pytree of arrays. Received: {leaf!r} at `{path}`"
                    f"{hint if callable(leaf) else ''}"
                )
    return error


def refuse_no_floats(params: Any) -> None:
    """Raises a TypeError for parameters of which none can be updated."""
    numbers = [
        (path, x) for path, x in leaves_by_path(params) if hasattr(x, "dtype") or isinstance(x, int | float | complex)
    ]
    if numbers and not any(is_inexact(x) or isinstance(x, float | complex) for _, x in numbers):
        path, first = numbers[0]
        dtype = getattr(first, "dtype", type(first).__name__)
        raise TypeError(
            "A parameter must be an array of floats or complex numbers to be updated, and there is none. Received: "
            f"`{path or 'params'}` of dtype {dtype}"
        )


def refuse_flat(program: Any, by: str) -> None:
    """Raises a ValueError for a program with `flat_state`: its slots do not have the structure of the parameters."""
    if any(plain.options.flat_state for plain in plain_programs(program)):
        raise ValueError(
            f"`{by}` needs slots with the structure of the parameters. Received: flat_state=True. Leave it out."
        )
