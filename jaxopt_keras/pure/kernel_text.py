"""The text of a kernel: the call that makes it, without defaults."""

from typing import Any

from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.pipeline import Program as Pipeline
from jaxopt_keras.engine.programs.partitioned import Partitioned
from jaxopt_keras.language.printing import arguments_of, call


def parts(program: Any) -> list[str]:
    """The arguments in the text of a kernel: its rule and options, or a call for each program around others."""
    if isinstance(program, Pipeline):
        core = program.core
        options = arguments_of(program.options)
        of = core.rule if isinstance(core, Leafwise) else core.tx if isinstance(core, Foreign) else core
        return [repr(of), call("Options", *options) if options else ""]
    names = program.names if isinstance(program, Partitioned) else ()
    inner = [_joined(child) for child in program.children]
    inner = [f"{name!r}: {text}" for name, text in zip(names, inner, strict=True)] if names else inner
    return [call(type(program).__name__, *inner)]


def _joined(program: Any) -> str:
    return ", ".join(part for part in parts(program) if part)
