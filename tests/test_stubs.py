"""The generated stub says what the rules say now."""

import ast

import jaxopt_keras
from jaxopt_keras import stubs


def test_the_stub_is_fresh():
    assert stubs.PATH.read_text() == stubs.stub(), "run `python -m jaxopt_keras.stubs`"


def test_the_stub_names_what_there_is():
    tree = ast.parse(stubs.stub())
    made = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))} - {"parameters"}
    assert made == set(jaxopt_keras.optimizers.__all__)
