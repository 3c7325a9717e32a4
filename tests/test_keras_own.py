"""A part of Keras's own tests passes with our classes. `python -m tests.keras_own` runs the rest."""

from pathlib import Path

import pytest

from tests.keras_own import DEVIATIONS, QUICK, found, outcomes

PAGE = Path(__file__).parent.parent / "docs" / "keras.md"


@pytest.mark.skipif(not found(QUICK), reason="Keras is not installed, or without its tests")
def test_kerass_own_tests_of_optimizers_pass_but_for_the_deviations():
    passed = outcomes(found(QUICK), swapped=True)
    assert len(passed) > 40
    assert {name for name in passed if not passed[name]} == DEVIATIONS.keys() & passed.keys()


def test_the_page_lists_the_deviations():
    page = " ".join(PAGE.read_text().split())
    for name, reason in DEVIATIONS.items():
        assert name in page and reason in page
