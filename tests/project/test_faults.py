"""The table of planted faults is of this code. That the tests catch them, `python -m tests.faults` proves."""

import pytest

from tests.faults import FAULTS, PAGE, ROOT, page


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.meaning}")
def test_it_can_be_planted(fault):
    assert "\n" not in fault.right + fault.wrong
    if fault.file.endswith(".py"):
        compile(fault.planted, fault.file, "exec")
    assert (ROOT / fault.command.split()[0]).exists()


def test_every_rule_has_a_fault():
    planted = {fault.file for fault in FAULTS}
    files = {f"rules/{path.name}" for path in (ROOT / "jaxopt_keras" / "rules").glob("[!_]*.py")}
    assert files <= planted and len(FAULTS) >= 20


def test_the_page_is_fresh():
    assert page() == PAGE.read_text(), "run `python -m tests.faults --write`"
