"""Meanings of hyperparameters, from the "Args" sections of their classes' docstrings."""

import functools
import inspect
import re
from typing import Any

from jaxopt_keras.language.rule import Field

SECTION = re.compile(r"^Args:\n((?: {4}.*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {8}.*)*)", re.MULTILINE)
WIDTH = 110


def description(cls: type) -> str:
    """Return the docstring of a class without its section of arguments."""
    return SECTION.sub("", inspect.getdoc(cls) or "").strip()


@functools.cache
def meanings(cls: type) -> dict[str, str]:
    """Return the meaning of each argument, by name; a class inherits those of its bases.

    >>> from jaxopt_keras import rules
    >>> meanings(rules.SGD)["nesterov"]
    'apply the momentum ahead of the step.'
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = SECTION.search(inspect.cleandoc(vars(base).get("__doc__") or ""))
        for names, meaning in ENTRY.findall(section[1]) if section else ():
            found |= dict.fromkeys(names.split(", "), meaning.strip())
    return found


def limits(field: Field) -> str:
    """Return the values that a hyperparameter may have; "" if its meaning has to say it."""
    if field.choices:
        return f"One of {', '.join(repr(choice) for choice in field.choices)}."
    if bool in field.types:
        return "True or False."
    kind = "A number" if float in field.types else "An integer" if int in field.types else ""
    if not kind:
        return ""
    bounded = f" in {field.range}" if field.range and str(field.range) != "(-inf, inf)" else ""
    return f"{kind}{bounded}{' or None' if type(None) in field.types else ''}."


def entry(name: str, meaning: str, field: Field, default: Any) -> str:
    """Return the entry of an argument in a docstring: its meaning, its values, its default."""
    text = f"    {name}: {meaning}".rstrip()
    given = "" if default is inspect.Parameter.empty else f"Default: {default!r}."
    facts = " ".join(part for part in (limits(field), given) if part)
    fits = len(text.rpartition("\n")[2]) + len(facts) < WIDTH
    return f"{text}{' ' if fits else chr(10) + ' ' * 8}{facts}"
