"""Every rule's optax variant beside the optax function of its name, in float32; and torch's optimizers, where torch is.

How, and what for: `benchmarks.parity`.
"""

import pytest

from benchmarks.parity.cases import difference, draw, run
from benchmarks.parity.comparison import BAR, compare
from benchmarks.parity.optax import Optax
from benchmarks.parity.peer import RULES
from benchmarks.parity.torch import Torch
from jaxopt_keras import rules


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "optax" in rule.variants])
def test_the_difference_to_optax_is_within_the_bar(name: str):
    pytest.importorskip("optax")
    cell = compare(RULES[name], "optax", Optax(), seeds=[1], steps=40)
    assert cell.difference is not None, cell.reason
    assert cell.passed, cell.settings


@pytest.mark.parametrize("least", [None, 131])
def test_adafactor_factors_what_optax_factors(least: int | None):
    """Arrays around the size from which optax's Adafactor factors, over their two largest axes."""
    pytest.importorskip("optax")
    shapes = {"tall": (130, 128), "broad": (2, 128, 133), "first": (130, 2, 128), "thin": (127, 140)}
    peer = Optax()
    terms = peer.terms(rules.Adafactor)[0]._replace(pinned={"min_dim_size_to_factor": least})
    case = draw(rules.Adafactor, terms, seed=0, steps=10, shapes=shapes)
    assert difference(run(case), peer.run(case), case) <= BAR


@pytest.mark.parametrize("name", RULES)
def test_the_difference_to_torch_is_within_the_bar(name: str):
    pytest.importorskip("torch")
    cell = compare(RULES[name], "torch", Torch(), seeds=range(1), steps=40)
    if cell.difference is None:
        pytest.skip(str(cell.reason))
    assert cell.passed, cell.settings
