"""A part of Keras's own tests passes with our classes. `python -m tests.interop.keras_own` runs the rest."""

from collections import Counter
from pathlib import Path

import pytest

from tests.interop.keras_own import DEVIATIONS, QUICK, found, outcomes

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not found(QUICK), reason="Keras is not installed, or without its tests")
def test_kerass_own_tests_of_optimizers_pass_but_for_the_deviations():
    passed = outcomes(found(QUICK), swapped=True)
    assert len(passed) > 40
    assert {name for name in passed if not passed[name]} == DEVIATIONS.keys() & passed.keys()


def test_the_pages_list_the_deviations():
    page, names = (" ".join((ROOT / file).read_text().split()) for file in ("docs/keras.md", "tests/README.md"))
    assert f"but for {len(DEVIATIONS)}, which" in page
    for reason, count in Counter(DEVIATIONS.values()).items():
        mine = " ".join(f"`{name}`" for name in DEVIATIONS if DEVIATIONS[name] == reason)
        assert f"- {count}: {reason}" in page and f"- {reason}: {mine}" in names
