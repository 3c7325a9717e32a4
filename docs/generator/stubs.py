"""Writes the type stubs of `optimizers` and `interop.keras`: `python -m docs.generator.stubs`.

A signature lists its rule's own arguments, in Keras's order. The common options are one TypedDict, `CommonOptions`.
"""

import itertools
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxopt_keras import optimizers
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule, fields_of
from jaxopt_keras.optimizers import FUNCTIONS, MORE, MORE_FUNCTIONS, RULES, parameters

PACKAGE = Path(optimizers.__file__).parent
PATH = PACKAGE / "optimizers.pyi"
KERAS = PACKAGE / "interop" / "keras" / "__init__.pyi"
WIDTH = 120

HEAD = '''"""Written by `python -m docs.generator.stubs`, from the rules. Not by hand."""

# fmt: off
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, type_check_only

import numpy as np
from jax import Array

from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.option_values import Format
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

Number = float | np.number[Any] | Array | Callable[..., Any]
"""A number, or a schedule: a function of the step. The stateful face also takes a function without arguments."""
Rate = Number

RULES: dict[str, type[Rule]]
CLASSES: dict[str, type[Optimizer]]
FUNCTIONS: dict[str, Callable[..., Kernel]]
MODIFIERS: dict[str, type[Modifier]]
INNER: str
OF_LOSSES: dict[str, type[Rule]]
MORE: dict[str, type[Rule]]
MORE_CLASSES: dict[str, type[Optimizer]]
MORE_FUNCTIONS: dict[str, Callable[..., Kernel]]

def parameters(rule: type[Rule]) -> list[inspect.Parameter]: ...
'''

HEAD_OF_OPTIONS = '''@type_check_only
class CommonOptions(TypedDict, total=False):
    """The options of every optimizer, with their defaults; `jaxopt_keras.Options` explains each."""

'''

HEAD_OF_KERAS = '''"""Written by `python -m docs.generator.stubs`, from the rules. Not by hand."""

# fmt: off
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from jax import Array

from jaxopt_keras.interop.keras.adapter import Adapter
from jaxopt_keras.interop.keras.callback import HistoryCallback as HistoryCallback
from jaxopt_keras.interop.keras.wrappers import as_keras as as_keras
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.optimizers import CommonOptions, Number, Rate
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

CLASSES: dict[str, type[Adapter]]
MODIFIED: dict[str, type[Adapter]]
'''

# The type of an argument that is Any in its rule or in `Options`.
SPECIAL = {
    "learning_rate": "Rate",
    "exclude_from_weight_decay": "Sequence[str] | Callable[[str, Any], bool]",
    "state_dtype": "Format | dict[str, Format] | None",
    "exclude_layers": "Sequence[str] | None",
    "matrices": "Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()]",
    "iteration": "str | Sequence[Sequence[float]] | Callable[[Array], Array] | None",
    "others": "Rule | Kernel | None",
    "fraction": "float",
    "pattern": "str | Sequence[str]",
    "gradient_accumulation_steps": "int | Callable[[Any], Any] | None",
    "constraints": "dict[str, Callable[[Any], Any]] | tuple[()]",
}
# All options but one: rules place `weight_decay` among their own arguments, and choose its default.
COMMON = [name for name in fields_of(Options) if name != "weight_decay"]


def annotation(rule: type[Rule] | type[Options], name: str) -> str:
    """The type of an argument as text."""
    if name in SPECIAL:
        return SPECIAL[name]
    field = (fields_of(Options) | fields_of(rule))[name]
    if field.choices:
        return f"Literal[{', '.join(quoted(choice) for choice in field.choices)}]"
    return " | ".join(
        "None" if t is type(None) else "Number" if t is float else getattr(t, "__name__", "Any") for t in field.types
    )


def options() -> str:
    """The TypedDict of the common options. A comment gives the default, and that of rules with another one."""
    lines = []
    for name in COMMON:
        own = [f"{rule.__name__}: {quoted(rule.defaults[name])}" for rule in RULES.values() if name in rule.defaults]
        lines.append(
            f"    {name}: {annotation(Options, name)}  # {', '.join([quoted(getattr(Options, name)), *own])}\n"
        )
    return HEAD_OF_OPTIONS + "".join(lines)


def arguments(rule: type[Rule]) -> list[str]:
    """The arguments of an optimizer. Arguments that Keras places after common options are keyword-only here."""
    if issubclass(rule, Modifier):
        return arguments_around(rule)
    given = parameters(rule)
    first = list(itertools.takewhile(lambda p: p.kind is not p.KEYWORD_ONLY and p.name not in COMMON, given))
    rest = [p for p in given[len(first) :] if p.name not in COMMON]
    spelled = [f"{p.name}: {annotation(rule, p.name)} = {quoted(p.default)}" for p in first + rest]
    star = ["*"] if rest else []
    return [*spelled[: len(first)], *star, *spelled[len(first) :], "**options: Unpack[CommonOptions]"]


def arguments_around(modifier: type[Modifier]) -> list[str]:
    """The arguments of a modified optimizer."""
    own = [p for p in parameters(modifier)[1:] if p.kind is not p.KEYWORD_ONLY]
    spelled = [f"{p.name}: {annotation(modifier, p.name)} = {quoted(p.default)}" for p in own]
    more = ["*", "learning_rate: Rate | None = None", "weight_decay: Number | None = None"]
    return ["inner: Rule | Kernel | Optimizer", *spelled, *more, "**options: Unpack[CommonOptions]"]


def quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def lines_of(items: Iterable[str], indent: str) -> str:
    """Lines of as many items as fit, each followed by a comma."""
    text = " ".join(f"{item},".replace(" ", "\0") for item in items)  # keeps an item on one line
    filled = textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\0", " ")


def classes(base: str) -> list[str]:
    """A class for each optimizer."""
    every = [(rule, arguments(rule)) for rule in [*RULES.values(), *MORE.values()]]
    return [
        f"class {rule.__name__}({base}):\n    def __init__(\n"
        f"{lines_of(['self', *given], ' ' * 8)}\n    ) -> None: ...\n"
        for rule, given in every
    ]


def names(*exported: str) -> str:
    return f"__all__ = [\n{lines_of(map(quoted, exported), ' ' * 4)}\n]\n"


def stub() -> str:
    """The whole file of `optimizers`."""
    every = map(arguments, [*RULES.values(), *MORE.values()])
    functions = [
        f"def {name}(\n{lines_of(given, ' ' * 4)}\n) -> Kernel: ...\n"
        for name, given in zip([*FUNCTIONS, *MORE_FUNCTIONS], every, strict=True)
    ]
    exported = names(*RULES, *FUNCTIONS, *MORE, *MORE_FUNCTIONS)
    return "\n".join([HEAD, options(), *classes("Optimizer"), "".join(functions), exported])


def keras_stub() -> str:
    """The whole file of `interop.keras`."""
    exported = names(*(r.__name__ for r in [*RULES.values(), *MORE.values()]), "as_keras")
    return "\n".join([HEAD_OF_KERAS, *classes("Adapter"), exported])


if __name__ == "__main__":
    PATH.write_text(stub())
    KERAS.write_text(keras_stub())
