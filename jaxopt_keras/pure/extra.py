"""The keywords of a step besides parameters, state and gradients: of kernels, and of an optax transformation."""

import functools
import inspect
import itertools
import types
import warnings
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from jaxopt_keras.engine import second
from jaxopt_keras.engine.compiled import in_transformation
from jaxopt_keras.engine.cores.foreign import EXTRA, Foreign
from jaxopt_keras.engine.given import FLUSH, FUNCTION, LOSS, WEIGHT, refuse_unused
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.language.options import Options

KEYWORDS = {"value": LOSS, "weight": WEIGHT, "flush": FLUSH}  # `value` is optax's word for the loss
FUNCTIONS = ("value_fn", "obj_fn", "grad_fn")  # optax's words for the loss function: of L-BFGS, Sophia and SAM
IGNORED = "grad"  # what optax's line searches take besides: the gradients once more
MANY = 10  # different functions of one code, after which a warning says what they cost


def plain_options(program: Any) -> list[Options]:
    return [plain.options for plain in plain_programs(program)]


def refuse_unknown_keywords(program: Any, extra: dict[str, Any]) -> None:
    """Raises a TypeError for a keyword of `step` that no kernel takes."""
    if not (unknown := extra.keys() - {*KEYWORDS, *FUNCTIONS, IGNORED}) or _foreign(program) is not None:
        return
    if any(unknown <= {*_arguments(extra[name], unknown)} for name in FUNCTIONS if callable(extra.get(name))):
        return
    raise TypeError(
        "`step` takes `params`, `state`, `grads`, `value`, `value_fn` and its keywords, `weight`, `flush` and `donate`"
        f". Received: {sorted(unknown)}"
    )


def with_extra(program: Any, hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The run-time values of a call: hyperparameters, and those keywords that the program takes.

    A transformation of optax gets all keywords but a flush and a weight that accumulation takes.

    Raises:
        TypeError: if a weight or a flush would have no effect, or a loss function is no function.
    """
    if not extra:
        return hyper
    options, foreign = plain_options(program), _foreign(program)
    if foreign is not None:
        own = {"flush": options[0].gradient_accumulation_steps, "weight": options[0].weighted_accumulation}
        taken = foreign.extra({name: x for name, x in extra.items() if not own.get(name)})
        hyper = hyper | taken
        extra = {name: x for name, x in extra.items() if name not in taken[EXTRA]}
    given = {key: extra[name] for name, key in KEYWORDS.items() if extra.get(name) is not None}
    if any(plain.core.needs_function for plain in plain_programs(program) if hasattr(plain, "core")):
        given |= _function(extra, program)
    refuse_unused(options, given)
    return program.offered(hyper, given)


def _function(extra: dict[str, Any], program: Any) -> dict[str, Any]:
    """The loss function among the keywords, with its own keywords, as the engine is given it; {}: there is none."""
    found = {name: extra[name] for name in FUNCTIONS if extra.get(name) is not None}
    if not found:
        return {}
    name, function = next(iter(found.items()))
    if not callable(function):
        raise TypeError(f"`{name}` must be a function of the parameters. Received: {name}={function!r}")
    if name == "grad_fn":
        return {FUNCTION: second.of_gradients(static(function, program))}
    own = extra.keys() - {*KEYWORDS, *FUNCTIONS, IGNORED}
    keywords = {n: extra[n] for n in own & {*_arguments(function, own)}}
    return {FUNCTION: second.of_values(static(function, program), keywords)}


def _arguments(function: Any, wanted: Any) -> list[str]:
    """The names of the arguments of a function; with `**keywords` the wanted ones too."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions in C tell none
        return [*wanted]
    return [*known, *(wanted if any(p.kind is p.VAR_KEYWORD for p in known.values()) else ())]


def static(function: Any, program: Any) -> Partial:
    """A function as a part of the compiled program; the arrays that a `functools.partial` has given it are arguments.

    Warns if many functions of one code are compiled for a program.
    """
    if isinstance(function, Partial):
        return function
    bound = (function.args, function.keywords) if isinstance(function, functools.partial) else ()
    if bound and all(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(bound)):
        return Partial(static(function.func, program).func, *function.args, **function.keywords)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if isinstance(code, types.CodeType) and not in_transformation() and _is_last(code, function, program):
        warnings.warn(
            f"The loss function `{code.co_qualname}` was another object in {MANY} calls, and each is compiled anew. "
            "Define it once, and pass what changes as arguments: `kernel.minimize(loss, params, state, batch)`, "
            "`step(..., value_fn=loss, batch=batch)`, or `value_fn=functools.partial(loss, batch=batch)`.",
            stacklevel=5,
        )
    return Partial(function)


def _is_last(code: Any, function: Any, program: Any) -> bool:
    """Whether this function is the last one of so many with one code that a warning is due."""
    seen, counter = _functions(code, id(program))
    if id(function) in seen:
        return False
    seen[id(function)] = function  # kept, as JAX's caches keep it, so that no other has its identity
    return next(counter) == MANY


@functools.lru_cache(256)
def _functions(code: Any, program: int) -> tuple[dict[int, Any], Any]:
    return {}, itertools.count(1)


def _foreign(program: Any) -> Foreign | None:
    plain = plain_programs(program)
    core = getattr(plain[0], "core", None) if len(plain) == 1 else None
    return core if isinstance(core, Foreign) else None
