"""Generated pages of the site (`docs/generator`): the page of optimizers and the page of the API."""

import doctest

import pytest

import jaxopt_keras as jk
from docs.generator import api, docstrings, equations, optimizers
from jaxopt_keras.language.meanings import description
from jaxopt_keras.optimizers import CLASSES, MORE_CLASSES, RULES


@pytest.mark.parametrize("module", [docstrings, equations], ids=lambda module: module.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


@pytest.mark.parametrize(
    "text, latex",
    [
        ("p <- p - lr m / (sqrt(v) + epsilon)", r"p \leftarrow p - \eta\,\frac{m}{\sqrt{v} + \varepsilon}"),
        ("u = a / b / (c + d) e", r"u = \frac{a}{b\,(c + d)}\,e"),  # one after the other: by their product
        ("x = (1 - 0.96^t / 2) cᵀ", r"x = (1 - 0.96^{t} / 2)\,c^{\top}"),
        ("n' = mu_{t+1} |p - 1e-7|²", r"n' = \mu_{t+1}\,\lvert p - 10^{-7}\rvert ^{2}"),
        ("r <- mean_rows(q), as before", r"r \leftarrow \operatorname{mean}_{\text{rows}}(q)\text{, as before}"),
        ("p <- p - lr |p| / |u| u", r"p \leftarrow p - \eta\,\frac{\lvert p\rvert }{\lvert u\rvert }\,u"),
        ("k = -rate_power if a step", r"k = -\text{rate_power}\text{ if a step}"),
    ],
)
def test_equations(text, latex):
    assert equations.display([text], {"rate_power"}) == f"\\begin{{aligned}}\n&{latex}\n\\end{{aligned}}"


@pytest.mark.parametrize(
    "text", ["no equation here", "x = (1 - y", "x = some words", "c = w / (the sum of w)", "optimizer = jk.Adam(0.1)"]
)
def test_what_is_no_equation_stays_code(text):
    assert equations.display([text]) is None


@pytest.mark.parametrize("name", RULES)
def test_every_equation_of_every_rule_is_read(name):
    rule = RULES[name]
    lines = optimizers.section(name, rule).splitlines()
    indented = [line.strip() for line in description(rule).splitlines() if line.startswith("    ")]
    assert indented and not any("code-block" in line for line in lines)  # what was no equation
    assert sum(line.strip().startswith("&") for line in lines) == len(indented)
    for slot in rule.slots():
        assert f"   * - `{slot}`" in lines
    left = [line for line in lines if "&" in line and any(mark in line for mark in ("<-", "²", "sqrt(", "^t", "max(("))]
    assert not left  # of a line that was read in part


def test_errors_are_separated():
    lines = ["Raises:", "    TypeError: if it is", "    none. ValueError: if it is bad."]
    assert docstrings.restructured(lines)[1:3] == ["    TypeError: if it is none.", "    ValueError: if it is bad."]


def test_when_slots_exist():
    def presence(rule):
        return {slot: optimizers.presence(rule, slot) for slot in rule.slots()}

    assert presence(RULES["Adam"]) == {"momentum": "always", "velocity": "always", "velocity_hat": "with `amsgrad`"}
    assert presence(RULES["SGD"]) == {"momentum": "with `momentum`"}
    assert presence(RULES["Adafactor"]) == {
        "row": "for matrices",
        "column": "for matrices",
        "velocity": "for other arrays",
    }
    assert (
        presence(RULES["SM3"]).items()
        >= {
            "accumulator_0": "always",
            "accumulator_1": "for matrices",
            "accumulator_2": "for arrays of more axes",
        }.items()
    )


def test_the_api_has_every_public_name():
    page = api.page()
    for name in vars(jk):
        if name[0].isupper() and name not in CLASSES | MORE_CLASSES:
            assert f"jaxopt_keras.{name}\n" in page, name
    assert "jaxopt_keras.schedules" in page and "jaxopt_keras.interop.tensorflow" in page
