"""Every optimizer beside the Keras class of its name, in float32. How, and what for: `benchmarks.parity`."""

import inspect

import pytest

from benchmarks.parity.comparison import compare
from benchmarks.parity.keras import Keras
from benchmarks.parity.peer import RULES
from jaxopt_keras import Rule

keras = pytest.importorskip("keras")

WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "keras" in rule.variants])
def test_the_difference_is_within_the_bar(name: str):
    cell = compare(RULES[name], "keras", Keras(), seeds=[0], steps=40)
    if cell.difference is None:
        pytest.skip(str(cell.reason))
    assert cell.passed, cell.settings


def test_every_keras_optimizer_is_compared():
    """Else a class that we misspell would be skipped above."""
    base = keras.optimizers.Optimizer
    theirs = {n for n, x in vars(keras.optimizers).items() if inspect.isclass(x) and issubclass(x, base)} - WRAPPERS
    ours = {rule.__name__: rule for rule in RULES.values()}
    assert theirs and theirs <= ours.keys()
    assert all(Keras().terms(ours[name]) for name in theirs)


def test_a_rule_of_another_name_is_not_compared():
    class Unheard(Rule):
        pass

    cell = compare(Unheard, "keras", Keras(), seeds=range(1), steps=1)
    assert (cell.difference, cell.reason, str(cell)) == (None, "none in keras.optimizers", "-")
