"""`python -m benchmarks.training`: its tasks, the search over rates, the table, and a run that goes on."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.training import __main__ as command
from benchmarks.training import claims, report
from benchmarks.training.functions import TASKS
from benchmarks.training.models import digits, mnist1d, transformer
from benchmarks.training.optimizers import OPTIMIZERS, middle_rate
from benchmarks.training.search import EVERY, Result, rates_of, search

pytestmark = pytest.mark.usefixtures("jax_defaults")  # the tasks are written as a user would


@pytest.mark.parametrize("make", [*(lambda task=task: task for task in TASKS), digits, mnist1d, transformer])
def test_a_task_starts_above_its_target_and_has_gradients(make: Any):
    task = make()
    key, exact = jax.random.key(0), task.exact or task.loss
    assert float(exact(task.params, key)) > task.target
    slope = jax.eval_shape(jax.grad(task.loss), task.params, key)
    assert jax.tree.structure(slope) == jax.tree.structure(task.params)


def test_the_least_value_of_a_saddle_is_its_minimum():
    by_name = {task.name: task for task in TASKS}
    for name, x in {
        "saddle": (0, 2**0.5),
        "monkey saddle": (-3.0, 0.0),
        "rosenbrock": (1, 1),
        "beale": (3, 0.5),
    }.items():
        assert abs(float(by_name[name].loss({"x": jnp.asarray(x, jnp.float32)}, None))) < 1e-5, name


def test_a_bowl_is_solved_by_gradient_descent():
    bowl = next(task for task in TASKS if task.name == "bowl")
    found = search("sgd", bowl._replace(steps=60), 5)  # p <- p (1 - rate / 8), of 16 elements that start as 1
    assert found.rates == pytest.approx([1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1])
    assert found.steps == [None] * 5 and found.final[-1] == pytest.approx((1 - 0.1 / 8) ** 120, rel=1e-4)
    faster = search("sgd", bowl._replace(target=0.3), 5)
    assert faster.best == 50 and faster.best % EVERY == 0  # (1 - 0.1 / 8)^96 = 0.299
    assert rates_of("adamw", 3) == pytest.approx([1e-3 / 10**0.5, 1e-3, 1e-3 * 10**0.5])


def test_every_optimizer_takes_part():
    """It learns something in 5 steps of a quadratic form, at the best of three rates."""
    bowl = next(task for task in TASKS if task.name == "bowl")._replace(steps=EVERY)
    quick = [name for name in OPTIMIZERS if "+" in name or name in ("sgd", "momo", "polyak_sgd")]
    assert set(OPTIMIZERS) >= {"adamw", "momo", "adamw+cosine", "adamw+lookahead"}
    for name in quick:
        found = search(name, bowl, 3)
        assert min(x for x in found.final if x is not None) < 1, (name, found)
    assert all(middle_rate(name) > 0 for name in OPTIMIZERS)


def test_the_cosine_ends_at_0():
    kernel = OPTIMIZERS["adamw+cosine"](jnp.float32(0.1), 20)
    assert float(kernel.rule.learning_rate(20)) == pytest.approx(0, abs=1e-9)
    assert float(kernel.rule.learning_rate(0)) == pytest.approx(0.1)


RESULTS = [
    Result("sgd", "bowl", [0.1, 1.0], [None, 50], [1.0, 0.1]),
    Result("lion", "bowl", [0.1, 1.0], [20, 40], [0.0, 0.1]),
    Result("sgd", "xor", [0.1, 1.0], [None, None], [1.0, None]),
]


def test_the_table(tmp_path: Any):
    table = report.table(RESULTS).splitlines()
    assert table[0] == "| optimizer | solved of 2 | bowl | xor |"
    assert table[2:] == ["| sgd | 1 | 50 (1x) | no |", "| lion | 1 | 20 (10x) | - |"]
    assert report.table(RESULTS, ["xor"]).splitlines()[2:] == ["| sgd | 1 | no |", "| lion | 1 | - |"]
    report.draw(RESULTS, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_claims():
    of = lambda name, *steps, final=1.0: Result(name, "digits", [0.1, 1.0, 10.0], list(steps), [None, final, final])
    found = [
        of("muon", 20, None, 40),
        of("adam", None, 30, None),
        of("prodigy+cosine", None, 59, 10),
        of("lion", 9, 9, 9),
    ]
    found += [of("adamw", None, 30, 40), of("adamw+cosine", None, None, None, final=0.9), of("soap", None, None, None)]
    found += [of("schedule_free_adamw", None, None, None)]
    rows = {
        row.split(" needs")[0][2:]: row for row in claims.table({(r.optimizer, r.task): r for r in found}).split("\n")
    }
    assert rows["muon"].endswith("| 20 / 30 |  |  | yes |") and rows["soap"].endswith("| no / 30 |  |  | no |")
    assert rows["prodigy at its default rate, with the cosine that its authors advise,"].endswith(
        "| 59 / 30 |  |  | yes |"
    )
    ends = next(row for row in rows if row.startswith("schedule_free_adamw"))
    assert rows[ends].endswith("| 1 / 0.9 |  |  | no |")
    rate = next(row for row in rows if row.startswith("lion's"))
    assert rows[rate].endswith("| 0.1 / 1 |  |  | yes |") and not any(row.startswith("nadam") for row in rows)


def test_a_run_goes_on(tmp_path: Any, capsys: Any, monkeypatch: Any):
    path, calls = tmp_path / "a.json", []
    once = command.search
    monkeypatch.setattr(command, "search", lambda *x: calls.append(x[:2]) or once(*x))
    arguments = ["--optimizer", "sgd", "--rates", "1", "--part", "0.02", "--json", str(path), "--task", "bowl"]
    assert command.main(arguments) == 0 and len(calls) == 1
    assert command.main([*arguments, "saddle"]) == 0 and len(calls) == 2
    saved = json.loads(path.read_text())
    assert [each["task"] for each in saved["results"]] == ["bowl", "saddle"] and "jax" in saved["versions"]
    assert "| sgd | 0 | no |" in capsys.readouterr().out
    assert command.main([*arguments, "--part", "0.03"]) == 0 and len(calls) == 3  # other settings: anew
