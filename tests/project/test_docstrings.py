"""Docstrings of the optimizers: every argument has its meaning, its values and its default."""

import inspect
import re
from typing import Literal, get_args

import pytest

import jaxopt_keras as jk
from jaxopt_keras.language.meanings import description, entry, limits, meanings
from jaxopt_keras.language.option_values import FORMATS, Format
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Decay, Field, Rule, fields_of
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS, RULES, parameters

MAKERS = CLASSES | FUNCTIONS


@pytest.mark.parametrize("cls", [Options, *RULES.values()])
def test_every_argument_has_a_meaning_and_no_other_has(cls):
    said, known = meanings(cls), fields_of(cls)
    assert said.keys() == known.keys()
    assert all(len(meaning) > 10 and meaning.endswith(".") for meaning in said.values()), said


def entries(doc: str) -> dict[str, str]:
    """The entries of the arguments of a docstring, each on one line."""
    section = doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


@pytest.mark.parametrize("name", MAKERS)
def test_help_has_every_argument_in_order_with_its_default(name):
    make = MAKERS[name]
    found = entries(inspect.getdoc(make))
    signature = inspect.signature(make.__init__ if isinstance(make, type) else make)
    given = {n: p.default for n, p in signature.parameters.items() if n != "self"}
    assert list(found) == list(given)
    for argument, text in found.items():
        assert text.endswith(f"Default: {given[argument]!r}."), text
        assert len(text.split(".")[0]) > 10, text
    assert max(map(len, inspect.getdoc(make).splitlines())) <= 120


@pytest.mark.parametrize("rule", RULES.values())
def test_ranges_are_those_of_the_fields(rule):
    known = fields_of(Options) | fields_of(rule)
    for name, text in entries(inspect.getdoc(FUNCTIONS[rule.__module__.rsplit(".", 1)[-1]])).items():
        field = known[name]
        if field.range and (float in field.types or int in field.types) and str(field.range) != "(-inf, inf)":
            assert f"in {field.range}" in text, text
        assert limits(field) in text


def test_a_keras_class_has_the_same_help(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    adapters = pytest.importorskip("jaxopt_keras.interop.keras")
    assert adapters.Adam.__doc__ == jk.Adam.__doc__ == jk.adam.__doc__


def test_a_description_has_no_arguments():
    for rule in RULES.values():
        assert "Args:" not in description(rule) and "<-" in description(rule)
        assert inspect.getdoc(FUNCTIONS[rule.__module__.rsplit(".", 1)[-1]]).count("Args:") == 1


class Silent(Rule):
    """p <- p - learning_rate g"""

    pull: Decay = 0.5


def test_a_rule_without_meanings_has_help_too():
    """It inherits the meanings of the common arguments."""
    assert meanings(Silent).keys() == {"learning_rate", "variant"}
    made = inspect.getdoc(jk.optimizers.pure(Silent))
    assert entries(made)["pull"].startswith("A number in [0, 1). Default: 0.5.")
    assert "number, or a schedule" in entries(made)["learning_rate"]


def test_an_entry():
    assert entry("x", "the x.", Field.read(float), 0.5) == "    x: the x. A number. Default: 0.5."
    assert limits(Field.read(Literal["a", None])) == "One of 'a', None."
    assert limits(Field.read(int | None)) == "An integer or None." and limits(Field.read(str)) == ""


def test_the_formats_of_slots_are_in_the_signature():
    assert FORMATS == get_args(Format)
    (parameter,) = (p for p in parameters(RULES["Adam"]) if p.name == "state_dtype")
    assert all(f"'{form}'" in str(parameter.annotation) for form in FORMATS)
