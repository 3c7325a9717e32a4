"""`python -m benchmarks.matrix_rules`: its runs, its rows, and a rule that is wrong."""

import json
from typing import Any

from benchmarks import matrix_rules as command
from benchmarks.parity.comparison import Cell


def test_a_row_for_every_run(tmp_path: Any, capsys: Any, monkeypatch: Any):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)  # HeavyBall
    monkeypatch.setattr(command, "wrong", lambda: [])
    path = tmp_path / "a.json"
    assert command.main(["--side", "8", "--count", "2", "--every", "3", "--seconds", "0.2", "--json", str(path)]) == 0
    rows = {row["step"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows)[:2] == ["adamw", "soap"] and rows["adamw"]["of_adamw"] == 1 and rows["soap"]["median"] > 0
    assert "| 8 | soap |" in capsys.readouterr().out


def test_a_rule_that_is_wrong_is_not_timed(monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(command, "compare", lambda rule, *more: Cell(rule.__name__, "float64", 2e-5, 1e-3))
    assert command.main([]) == 1 and "SOAP: 1.0e-03 ! from float64" in capsys.readouterr().out


def test_the_rules_follow_their_references():
    assert command.wrong() == []
