"""The keywords of a step besides parameters, state and gradients: of kernels, and of an optax transformation."""

from typing import Any

from jaxopt_keras.engine.cores.foreign import EXTRA, Foreign
from jaxopt_keras.engine.given import FLUSH, LOSS, WEIGHT, refuse_unused
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.language.options import Options

KEYWORDS = {"value": LOSS, "weight": WEIGHT, "flush": FLUSH}  # `value` is optax's word for the loss


def plain_options(program: Any) -> list[Options]:
    return [plain.options for plain in plain_programs(program)]


def refuse_unknown_keywords(program: Any, extra: dict[str, Any]) -> None:
    """Raises a TypeError for a keyword of `step` that no kernel takes."""
    if (unknown := extra.keys() - KEYWORDS) and _foreign(program) is None:
        raise TypeError(
            "`step` takes `params`, `state`, `grads`, `value`, `weight`, `flush` and `donate`. Received: "
            f"{sorted(unknown)}"
        )


def with_extra(program: Any, hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The run-time values of a call: hyperparameters, and those keywords that the program takes.

    A transformation of optax gets all keywords but a flush and a weight that accumulation takes.

    Raises:
        TypeError: if a weight or a flush would have no effect.
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
    refuse_unused(options, given)
    return program.offered(hyper, given)


def _foreign(program: Any) -> Foreign | None:
    plain = plain_programs(program)
    core = getattr(plain[0], "core", None) if len(plain) == 1 else None
    return core if isinstance(core, Foreign) else None
