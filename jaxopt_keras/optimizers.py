"""The named optimizers, made from the rules: a class (stateful face) and a function (pure face) for each rule.

And the modifiers, which are made around another optimizer: `jk.lookahead(jk.adam(1e-3))`.

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
from jaxopt_keras.engine.cores.leafwise import KEY, Leafwise
from jaxopt_keras.language.meanings import description, entry, meanings
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.options import EXTRAS, KERAS, Options
from jaxopt_keras.language.other_names import refuse_unknown
from jaxopt_keras.language.rule import RATE, Field, Rate, Rule, fields_of
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.rules import modifiers
from jaxopt_keras.stateful.optimizer import Optimizer

INNER = "inner"
EVERY: dict[str, type[Rule]] = {
    name: rule for name, rule in vars(rules).items() if isinstance(rule, type) and issubclass(rule, Rule)
}
RULES = {name: rule for name, rule in EVERY.items() if rule.takes in ((), (KEY,))}  # steps have what they need


@functools.cache
def parameters(rule: type[Rule]) -> list[inspect.Parameter]:
    """The arguments of an optimizer: its rule's and the common options, merged in Keras's order."""
    if issubclass(rule, Modifier):
        return parameters_around(rule)
    own = {f.name: f for f in dataclasses.fields(rule)}
    common = {f.name: f for f in dataclasses.fields(Options)}
    positional = [n for n, f in own.items() if not f.kw_only]
    order = dict.fromkeys([*rule.keras.signature, *positional, *KERAS])
    keywords = dict.fromkeys([n for n, f in own.items() if f.kw_only] + list(EXTRAS))
    known = _known(rule)

    def parameter(name: str, kind: Any) -> inspect.Parameter:
        default = rule.defaults.get(name, (own.get(name) or common[name]).default)
        return inspect.Parameter(name, kind, default=default, annotation=_annotation(known[name]))

    return [parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in order] + [
        parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in keywords
    ]


def _known(rule: type[Rule]) -> dict[str, Field]:
    """The declarations of all arguments. The rate of a modified optimizer may be None."""
    rate = {RATE: Field.read(Rate | None)} if issubclass(rule, Modifier) else {}
    return fields_of(Options) | fields_of(rule) | rate


def _annotation(field: Field) -> Any:
    """The type of an argument in a signature, without its range."""
    if field.choices:
        return Literal[field.choices]
    return functools.reduce(operator.or_, [*field.types, *([Callable] if field.traced else [])])


def split(rule: type[Rule], signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> tuple[Rule, Options]:
    """Splits the arguments of an optimizer into its rule and its options.

    Raises:
        TypeError: for an unknown argument. ValueError: if a required argument is None.
    """
    refuse_unknown(rule.__name__, kwargs, signature.parameters)
    bound = signature.bind(*args, **kwargs)
    if issubclass(rule, Modifier):
        return split_around(rule, dict(bound.arguments))
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
        older = self._older_arguments(kwargs, tf2=False)
        made, options = split(rule, signature, args, kwargs)
        self._start(made, options, made.learning_rate, **older)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # `inspect.signature` reads this attribute, which type checkers do not know.
    __init__.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__doc__": _docstring(rule), "__module__": "jaxopt_keras"}
    members |= {"_runs_rule": True}
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
    said, known = meanings(Options) | meanings(rule), _known(rule)
    if issubclass(rule, Modifier):
        said |= {INNER: "the optimizer inside: a rule, a kernel of one, or a new optimizer. Its options stay."}
        said |= {RATE: "another rate for it; None: the rate that it has."}
    arguments = "\n".join(entry(p.name, said.get(p.name, ""), known[p.name], p.default) for p in parameters(rule))
    return (
        f"{description(rule)}\n\nArgs:\n{arguments}\n\n"
        "Raises:\n    TypeError, ValueError: for an argument of a wrong type, or out of its range.\n"
    )


# --- modifiers --------------------------------------------------------------------------------------------------------


@functools.cache
def parameters_around(modifier: type[Modifier]) -> list[inspect.Parameter]:
    """The arguments of a modified optimizer: the inner one, the modifier's own, and by keyword the rate and options."""
    own = [f for f in dataclasses.fields(modifier) if f.name != INNER]
    known = _known(modifier)

    def parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, kind, default=default, annotation=_annotation(known[name]))

    both, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    options = [parameter(f.name, keyword, f.default) for f in dataclasses.fields(Options)]
    inner = inspect.Parameter(INNER, both, annotation=Rule | Kernel | Optimizer)
    return [inner, *(parameter(f.name, both, f.default) for f in own), parameter(RATE, keyword, None), *options]


def split_around(modifier: type[Modifier], given: dict[str, Any]) -> tuple[Rule, Options]:
    """The rule and the options of a modified optimizer, for the arguments that are `given`.

    Raises:
        TypeError: if `inner` is none of a rule, a kernel of one, and a new optimizer of one.
    """
    rule, options = _taken_apart(modifier, inner := given.pop(INNER))
    rate = given.pop(RATE, None)
    made: Rule = modifier(rule, **{n: given.pop(n) for n in [*given] if n in fields_of(modifier)})
    # Options of a kernel are as they were given. Those that the modifier itself needs are added.
    defaults = {n: x for n, x in made.defaults.items() if isinstance(inner, Rule) or n not in rule.defaults}
    missing = {n: x for n, x in defaults.items() if getattr(options, n) == getattr(Options, n)}
    return (made if rate is None else made.replaced(learning_rate=rate)), options.replaced(**missing | given)


def _taken_apart(modifier: type[Modifier], inner: Any) -> tuple[Rule, Options]:
    """The rule and the options of an inner optimizer."""
    if isinstance(inner, Rule):
        return inner, Options()
    if isinstance(inner, Optimizer) and isinstance(inner._rule, Rule) and not inner._paths:
        return inner._with_functions()
    core = getattr(getattr(inner, "program", None), "core", None)
    if isinstance(core, Leafwise):
        return core.rule, inner.options
    raise TypeError(
        f"`inner` of {modifier.__name__} must be a rule, a kernel of one rule such as `jaxopt_keras.adam()`, or a new "
        f"optimizer of one rule. Received: inner={inner!r}. Put the modifier into each group of a partition, and "
        "inside of `loss_scaled`."
    )


CLASSES: dict[str, type[Optimizer]] = {rule.__name__: stateful(rule) for rule in RULES.values()}
FUNCTIONS: dict[str, Callable[..., Kernel]] = {f.__name__: f for f in map(pure, RULES.values())}
# Those that need more than gradients: another optimizer, or the loss.
MODIFIERS: dict[str, type[Modifier]] = {
    name: found for name, found in vars(modifiers).items() if isinstance(found, type) and issubclass(found, Modifier)
}
OF_LOSSES = {name: rule for name, rule in EVERY.items() if name not in RULES}
MORE: dict[str, type[Rule]] = {**MODIFIERS, **OF_LOSSES}
MORE_CLASSES: dict[str, type[Optimizer]] = {name: stateful(found) for name, found in MORE.items()}
MORE_FUNCTIONS: dict[str, Callable[..., Kernel]] = {f.__name__: f for f in map(pure, MORE.values())}
globals().update(CLASSES | FUNCTIONS | MORE_CLASSES | MORE_FUNCTIONS)
__all__ = [*CLASSES, *FUNCTIONS, *MORE_CLASSES, *MORE_FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]  # the stub lists the names
