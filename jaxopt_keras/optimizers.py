"""The named optimizers, made from the rules: a class (stateful face) and a function (pure face) for each rule.

Names, arguments, their order and defaults are those of `keras.optimizers`. The keyword-only arguments at the end are
specific to this library. `python -m docs.generator.stubs` writes the type stubs, `optimizers.pyi`.
"""

import dataclasses
import functools
import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, Literal

from jaxopt_keras import rules
from jaxopt_keras.language.meanings import description, entry, meanings
from jaxopt_keras.language.options import EXTRAS, KERAS, Options
from jaxopt_keras.language.other_names import refuse_unknown
from jaxopt_keras.language.rule import RATE, Field, Rule, fields_of
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

RULES: dict[str, type[Rule]] = {
    name: rule for name, rule in vars(rules).items() if isinstance(rule, type) and issubclass(rule, Rule)
}


@functools.cache
def parameters(rule: type[Rule]) -> list[inspect.Parameter]:
    """The arguments of an optimizer: its rule's and the common options, merged in Keras's order."""
    own = {f.name: f for f in dataclasses.fields(rule)}
    common = {f.name: f for f in dataclasses.fields(Options)}
    positional = [n for n, f in own.items() if not f.kw_only]
    order = dict.fromkeys([*rule.keras.signature, *positional, *KERAS])
    keywords = dict.fromkeys([n for n, f in own.items() if f.kw_only] + list(EXTRAS))
    known = fields_of(Options) | fields_of(rule)

    def parameter(name: str, kind: Any) -> inspect.Parameter:
        default = rule.defaults.get(name, (own.get(name) or common[name]).default)
        return inspect.Parameter(name, kind, default=default, annotation=_annotation(name, known[name]))

    return [parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in order] + [
        parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in keywords
    ]


def _annotation(name: str, field: Field) -> Any:
    """The type of an argument in a signature, without its range."""
    if field.choices:
        return Literal[field.choices]
    return functools.reduce(operator.or_, [*field.types, *([Callable] if name == RATE else [])])


def split(rule: type[Rule], signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> tuple[Rule, Options]:
    """Splits the arguments of an optimizer into its rule and its options.

    Raises:
        TypeError: for an unknown argument. ValueError: if a required argument is None.
    """
    refuse_unknown(rule.__name__, kwargs, signature.parameters)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = bound.arguments
    for name in rule.required:
        if values[name] is None:
            raise ValueError(f"`{name}` must be a number for {rule.__name__}. Received: {name}=None")
    own = {f.name for f in dataclasses.fields(rule)}
    return (
        rule(**{n: v for n, v in values.items() if n in own}),
        Options(**{n: v for n, v in values.items() if n not in own}),
    )


def stateful(rule: type[Rule]) -> type[Optimizer]:
    """The Keras-style class of a rule."""
    signature = inspect.Signature(parameters(rule))

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.pop("decay", None) is not None:
            warnings.warn("`decay` is ignored, as in Keras 3: use a schedule.", stacklevel=2)
        made, options = split(rule, signature, args, kwargs)
        self._start(made, options, made.learning_rate)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # `inspect.signature` reads this attribute, which type checkers do not know.
    __init__.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__doc__": _docstring(rule), "__module__": "jaxopt_keras"}
    return type(rule.__name__, (Optimizer,), members)


def pure(rule: type[Rule]) -> Callable[..., Kernel]:
    """The function that makes the kernel of a rule; its name is that of the rule's module."""
    signature = inspect.Signature(parameters(rule))

    def make(*args: Any, **kwargs: Any) -> Kernel:
        return Kernel(*split(rule, signature, args, kwargs))

    make.__name__ = make.__qualname__ = rule.__module__.rsplit(".", 1)[-1]
    make.__signature__ = signature  # type: ignore[attr-defined]  # as in `stateful`
    make.__doc__, make.__module__ = _docstring(rule), "jaxopt_keras"
    return make


@functools.cache
def _docstring(rule: type[Rule]) -> str:
    """The docstring of an optimizer: its rule's, with the meaning, range and default of every argument."""
    said, known = meanings(Options) | meanings(rule), fields_of(Options) | fields_of(rule)
    arguments = "\n".join(entry(p.name, said.get(p.name, ""), known[p.name], p.default) for p in parameters(rule))
    return (
        f"{description(rule)}\n\nArgs:\n{arguments}\n\n"
        "Raises:\n    TypeError, ValueError: for an argument of a wrong type, or out of its range.\n"
    )


CLASSES: dict[str, type[Optimizer]] = {rule.__name__: stateful(rule) for rule in RULES.values()}
FUNCTIONS: dict[str, Callable[..., Kernel]] = {f.__name__: f for f in map(pure, RULES.values())}
globals().update(CLASSES | FUNCTIONS)
__all__ = [*CLASSES, *FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]  # the stub lists the names
