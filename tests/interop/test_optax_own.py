"""A part of optax's own tests passes with our kernels. `python -m tests.interop.optax_own` runs the rest."""

from pathlib import Path

import pytest

from tests.interop.optax_own import DEVIATIONS, QUICK, deviates, installed, outcomes

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not installed(), reason="optax is not installed with its tests, or scikit-learn is not")
def test_optaxs_own_tests_of_optimizers_pass_but_for_the_deviations():
    found = outcomes(QUICK, swapped=True)
    assert len(found) > 40
    assert {name: why for name, why in found.items() if why and not deviates(name)} == {}
    assert [name for name, why in found.items() if deviates(name) and not why] == []


def test_the_page_lists_the_deviations():
    page = " ".join((ROOT / "docs/from_optax.md").read_text().split())
    for name, reason in DEVIATIONS.items():
        assert f"| `{name}` | {reason} |" in page
