"""Write the type stubs of `optimizers` and `interop.keras`: `python -m jaxopt_keras.tools.stubs`."""

import inspect
from pathlib import Path
from typing import Any

from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule, fields_of
from jaxopt_keras.optimizers import FUNCTIONS, RULES, parameters

PACKAGE = Path(__file__).parent.parent
PATH = PACKAGE / "optimizers.pyi"
KERAS = PACKAGE / "interop" / "keras" / "__init__.pyi"

HEAD = '''"""Written by `python -m jaxopt_keras.tools.stubs`, from the rules. Not by hand."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jax import Array

from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

Rate = float | np.number[Any] | Array | Callable[..., Any]
"""A number, or a schedule: a function of the step. The stateful face also takes a function without arguments."""

RULES: dict[str, type[Rule]]
CLASSES: dict[str, type[Optimizer]]
FUNCTIONS: dict[str, Callable[..., Kernel]]

def parameters(rule: type[Rule]) -> list[inspect.Parameter]: ...
'''

HEAD_OF_KERAS = '''"""Written by `python -m jaxopt_keras.tools.stubs`, from the rules. Not by hand."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxopt_keras.interop.keras.adapter import Adapter
from jaxopt_keras.interop.keras.wrappers import as_keras as as_keras
from jaxopt_keras.optimizers import Rate

CLASSES: dict[str, type[Adapter]]
'''

# What an annotation of a rule or of `Options` cannot say, since it is Any there.
SPECIAL = {
    "learning_rate": "Rate",
    "exclude_from_weight_decay": "Sequence[str] | Callable[[str, Any], bool]",
    "exclude_layers": "Sequence[str] | None",
    "constraints": "dict[str, Callable[[Any], Any]] | tuple[()]",
}


def annotation(rule: type[Rule], name: str) -> str:
    """The type of an argument, for a reader."""
    if name in SPECIAL:
        return SPECIAL[name]
    field = (fields_of(Options) | fields_of(rule))[name]
    if field.choices:
        return f"Literal[{', '.join(quoted(choice) for choice in field.choices)}]"
    return " | ".join("None" if t is type(None) else getattr(t, "__name__", "Any") for t in field.types)


def arguments(rule: type[Rule]) -> str:
    """The arguments of an optimizer, one a line."""
    lines, keyword = [], False
    for p in parameters(rule):
        if p.kind is inspect.Parameter.KEYWORD_ONLY and not keyword:
            lines.append("    *,")
            keyword = True
        lines.append(f"    {p.name}: {annotation(rule, p.name)} = {quoted(p.default)},")
    return "\n".join(lines)


def quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def classes(base: str) -> list[str]:
    """A class for each optimizer."""
    inside = {rule.__name__: arguments(rule).replace("\n", "\n    ") for rule in RULES.values()}
    return [
        f"class {name}({base}):\n    def __init__(\n        self,\n    {lines}\n    ) -> None: ...\n"
        for name, lines in inside.items()
    ]


def stub() -> str:
    """The whole file of `optimizers`."""
    parts: list[Any] = [HEAD, *classes("Optimizer")]
    functions = zip(FUNCTIONS, RULES.values(), strict=True)
    parts.append("".join(f"def {name}(\n{arguments(rule)}\n) -> Kernel: ...\n" for name, rule in functions))
    names = "".join(f"    {quoted(name)},\n" for name in [*RULES, *FUNCTIONS])
    parts.append(f"__all__ = [\n{names}]\n")
    return "\n".join(parts)


def keras_stub() -> str:
    """The whole file of `interop.keras`."""
    names = "".join(f"    {quoted(name)},\n" for name in [*(rule.__name__ for rule in RULES.values()), "as_keras"])
    return "\n".join([HEAD_OF_KERAS, *classes("Adapter"), f"__all__ = [\n{names}]\n"])


if __name__ == "__main__":
    PATH.write_text(stub())
    KERAS.write_text(keras_stub())
