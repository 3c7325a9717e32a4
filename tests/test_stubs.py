"""The generated stub says what the rules say now."""

import ast

import pytest

import jaxopt_keras
from jaxopt_keras.tools import stubs


@pytest.mark.parametrize("path, stub", [(stubs.PATH, stubs.stub), (stubs.KERAS, stubs.keras_stub)])
def test_a_stub_is_fresh(path, stub):
    assert path.read_text() == stub(), "run `python -m jaxopt_keras.tools.stubs`"


def test_the_stub_names_what_there_is():
    tree = ast.parse(stubs.stub())
    made = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))} - {"parameters"}
    assert made == set(jaxopt_keras.optimizers.__all__)
