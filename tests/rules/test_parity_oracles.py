"""Every rule and variant beside its float64 reference, in float64, to 1e-12 of the distance travelled.

Sixty-four bits leave no room for a wrong formula to pass as rounding. `test_oracles.py` holds the references to Keras
and optax; the float32 optimizers are the affair of the other parity tests. The last tests here are of the command
`python -m benchmarks.parity` itself.
"""

import inspect
import json
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.parity import __main__ as command
from benchmarks.parity import cases, comparison
from benchmarks.parity.__main__ import main
from benchmarks.parity.cases import Case, Terms
from benchmarks.parity.histories import History, distance, relative
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import RULES
from benchmarks.parity.report import Report
from jaxopt_keras import Options
from jaxopt_keras.engine.state import is_absent
from jaxopt_keras.language.rule import fields_of
from tests.oracles import NAMES

BAR = 1e-12
ODD = {"cube": (2, 3, 4), "zero": (3,), "empty": (0, 3)}
VARIANTS = [(name, variant) for name, rule in RULES.items() for variant in rule.variants]
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)

in_float64 = pytest.mark.usefixtures("x64")
ignoring_empty_means = pytest.mark.filterwarnings("ignore:(Mean of empty slice|invalid value)")  # NumPy's


def draw(name: str, variant: str, options: Collection[str] | None = None, steps: int = 40, **more: Any) -> Case:
    """Random hyperparameters, and random options of those that are named: all by default."""
    options = {*fields_of(Options), "schedule"} if options is None else options
    terms = Terms(variant, {*fields_of(RULES[name]), *options}, pinned(name) | more.pop("pinned", {}))
    return cases.draw(RULES[name], terms, seed=0, steps=steps, **{"dtype": np.float64, **more})


def pinned(name: str) -> dict[str, Any]:
    return getattr(Oracle().module(RULES[name]), "pinned", {})


def assert_equal_runs(ours: History, expected: History, case: Case) -> None:
    assert all(p.dtype == case.params[name].dtype for name, p in ours[-1].items())
    differences = {name: relative(ours, expected, name, p) for name, p in case.params.items()}
    assert max(differences.values()) <= BAR, (differences, str(case))


@in_float64
@ignoring_empty_means
@every_variant
def test_random_settings(name: str, variant: str):
    case = draw(name, variant, shapes=cases.shapes_for(RULES[name]) | ODD)
    case.params["zero"][:] = 0
    assert_equal_runs(cases.run(case), Oracle().run(case), case)


def test_every_rule_has_a_reference_with_its_defaults():
    assert set(NAMES) == set(RULES)
    for name, rule in RULES.items():
        module = Oracle().module(rule)
        for function in (module.init, module.update):
            for n, parameter in inspect.signature(function).parameters.items():
                if n in fields_of(rule) and parameter.default is not parameter.empty:
                    assert parameter.default == getattr(rule, n), (name, n)


def switches_thrown(name: str) -> dict[str, Any]:
    """Options that are off by default are on: Nesterov's momentum, AMSGrad, centering, ..."""
    rule = RULES[name]
    fields = {n: field for n, field in fields_of(rule).items() if n not in ("learning_rate", "variant")}
    thrown = {n: not getattr(rule, n) for n, field in fields.items() if bool in field.types}
    return thrown | {n: 0.9 for n, field in fields.items() if field.fixed == 0}


def longer_memory(name: str) -> dict[str, float]:
    """Every decay ten times as close to one as its default; a momentum that is off becomes 0.9."""
    decays = {n: getattr(RULES[name], n) for n, field in fields_of(RULES[name]).items() if field.complement}
    return {n: 1 - (1 - (0.9 if default is None else default)) / 10 for n, default in decays.items()}


@in_float64
@every_variant
def test_everything_at_once(name: str, variant: str):
    """All switches and all options, on 40 updates of two gradients each; slots and averages are the reference's too."""
    rule, terms = (
        RULES[name],
        Terms(variant, fields_of(RULES[name]), longer_memory(name) | switches_thrown(name) | pinned(name)),
    )
    case = cases.draw_settings(rule, terms, 0, 80, np.float64, cases.shapes_for(rule))
    clip = cases.CLIPS[len(name + variant) % 3]
    options = {
        "weight_decay": 0.05,
        "exclude_from_weight_decay": ("kernel", "scalar"),
        clip: cases.typical_size(clip, case.grads) / 8,
        "loss_scale_factor": 8.0,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
        "gradient_accumulation_steps": 2,
        "constraints": {path: abs for path in ("kernel", "wide", "bias") if path in case.params},
    }
    case = cases.with_starts(replace(case, options=options, rate=cases.decaying(0.1)), seed=0)
    reference = Oracle().optimizer(case)
    history, state = cases.run_with_state(case)
    expected = reference.run(case.grads)
    assert_equal_runs(history, expected, case)
    assert int(state.count) == 40
    for path in case.params:
        slots = {name: tree[path] for name, tree in state.slots.items() if not is_absent(tree[path])}
        # An average is a parameter, and measured as one: it may end near zero after a long way.
        travelled = distance(expected, path, case.params[path])
        np.testing.assert_allclose(slots.pop("average"), reference.averages[path], rtol=0, atol=BAR * travelled)
        del slots["gradient_accumulator"]
        # The reference has the numbers that are kept once among the slots of each parameter, and it orders the two
        # factored axes of optax's Adafactor by place, not by size.
        if (name, variant) != ("adafactor", "optax"):
            scalars = {"u_product", "max_lr", "weight_sum"}
            assert slots.keys() == reference.slots[path].keys() - scalars
            for slot, value in slots.items():
                assert_close(value, reference.slots[path][slot])


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BAR * np.max(np.abs(expected)))


@in_float64
@pytest.mark.parametrize("least", [None, 131])
@pytest.mark.parametrize("variant", RULES["adafactor"].variants)
def test_adafactor_factors_from_a_size_on(variant: str, least: int | None):
    """optax from 128 unless told otherwise, over the two largest axes; Keras always, over the last two."""
    shapes = {"tall": (130, 128), "broad": (2, 128, 133), "first": (130, 2, 128), "thin": (127, 140)}
    case = draw("adafactor", variant, (), steps=4, shapes=shapes, pinned={"min_dim_size_to_factor": least})
    assert_equal_runs(cases.run(case), Oracle().run(case), case)


@in_float64
@pytest.mark.parametrize("beta_2", [0.9, 1.0])
def test_shampoo_with_its_default_epsilon(beta_2: float):
    """Drawn cases have a great one. `beta_2` is drawn as 1, plain sums; else L and R are averages."""
    case = draw(
        "shampoo", "authors", (), pinned={"beta_2": beta_2, "max_preconditioner_dim": 3, "precondition_frequency": 3}
    )
    assert_equal_runs(cases.run(case), Oracle().run(case), case)


@in_float64
@pytest.mark.parametrize("kl", [{}, {"max_precond_dim": 4}], ids=str)
def test_soap_of_kl(kl: dict[str, int]):
    """Epsilon is drawn as 1e-8, by which the inverse of a singular factor is known to a few digits only."""
    case = draw("soap", "authors", (), pinned={"kl": True, "epsilon": 0.1, "precondition_frequency": 3} | kl)
    assert_equal_runs(cases.run(case), Oracle().run(case), case)


# The references of the others square without a modulus: they are real. The rules' complex forms: tests/laws.
COMPLEX = ["sgd", "rmsprop", "adam", "adadelta", "adagrad", "adamax", "nadam", "lamb"]


@in_float64
@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers(name: str):
    options = ("weight_decay", "clipnorm", "global_clipnorm", "loss_scale_factor", "use_ema", "schedule")
    case = draw(name, "optax", options, dtype=np.complex128)
    assert_equal_runs(cases.run(case), Oracle().run(case), case)


# --- the measure


def history(*values: float) -> History:
    return [{"p": np.array([value])} for value in values]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), 0.0),
        ((1, 2.5, 3), (1, 2, 3), 0.25),  # start 1, so the way is 2
        ((1, 2, 1), (1, 3, 1), 0.5),  # the way back is a way too
        ((1, 1 + 2**-20), (1, 1), 2**-20),  # never moves: absolute
        ((1, float("nan")), (1, 2), float("inf")),
        ((1, 2), (1, float("inf")), float("inf")),
        ((float("nan"), 1), (float("nan"), 1), float("inf")),
    ],
)
def test_the_difference_is_relative_to_the_way(ours, theirs, expected):
    assert relative(history(*ours), history(*theirs), "p", np.array([1.0])) == expected


# --- the command

SHORT = ["--peer", "oracle", "--seeds", "1", "--steps", "3"]


def test_the_command_prints_and_writes_its_table(tmp_path, capsys):
    files = {"--json": tmp_path / "parity.json", "--markdown": tmp_path / "parity.md"}
    arguments = ["--optimizer", "SGD", "ftrl", *SHORT, *(str(x) for pair in files.items() for x in pair)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("python -m benchmarks.parity --optimizer SGD ftrl --peer oracle --seeds 1")
    assert "within its bar" in printed
    report = json.loads(files["--json"].read_text())
    assert [cell["optimizer"] for cell in report["cells"]] == ["SGD", "Ftrl"]
    assert report["command"] in printed and report["versions"].keys() >= {"jax", "Python", "oracle"}
    table = [line for line in files["--markdown"].read_text().splitlines() if line.startswith("|")]
    assert table[0] == "| optimizer | oracle | bar |" and table[2].startswith("| SGD | ") and len(table) == 4
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- parity -->\nold\n<!-- parity -->\nafter\n")
    main(["--optimizer", "SGD", *SHORT, "--markdown", str(page)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert "`python -m benchmarks.parity --optimizer SGD --peer oracle --seeds 1 --steps 3`" in lines


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    path, both = tmp_path / "parity.json", ["--optimizer", "sgd", "ftrl", *SHORT, "--json"]
    main([*both, str(path)])
    whole, compared = path.read_text(), []
    half = json.loads(whole)
    half["cells"] = half["cells"][:1]
    path.write_text(json.dumps(half))
    compare = lambda rule, *more: compared.append(rule.__name__) or comparison.compare(rule, *more)
    monkeypatch.setattr(command, "compare", compare)
    main([*both, str(path)])
    assert compared == ["Ftrl"] and path.read_text() == whole
    main([*both, str(path)])  # it was not interrupted
    assert compared == ["Ftrl", "SGD", "Ftrl"]


def test_the_command_fails_where_a_bar_is_exceeded(monkeypatch, capsys):
    monkeypatch.setattr(comparison, "BAR", 1e-12)
    assert main(["--optimizer", "adam", *SHORT]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "! Adam and oracle, seed 0: " in printed and "beta_1=" in printed


@pytest.mark.parametrize(
    ("ours", "theirs", "text"), [(1e-6, 4e-5, "4.0e-05 *"), (4e-5, 1e-6, "4.0e-05 !"), (4e-5, 4e-5, "4.0e-05 !")]
)
def test_a_difference_that_is_the_peers_own(ours: float, theirs: float, text: str):
    cell = comparison.Cell("Adam", "optax", 2e-5, 4e-5, ours_to_float64=ours, peer_to_float64=theirs)
    assert str(cell) == text and cell.passed == text.endswith("*")
    notes = Report("", {}, ["optax"], [[cell]]).notes()
    assert len(notes) == 1 and ("from float64 ours 1.0e-06, optax 4.0e-05" in notes[0]) == cell.passed


def test_not_a_number_is_beyond_every_bar(monkeypatch):
    found = iter([1e-6, 0.0, 0.0, float("nan"), 0.0, 0.0])  # of each variant: to the peer, and of both to float64
    monkeypatch.setattr(comparison, "difference", lambda *_: next(found))
    assert not comparison.compare(RULES["sgd"], "oracle", Oracle(), range(1), 3).passed


def test_the_command_says_what_it_did_not_compare(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["--optimizer", "sgd", "--peer", "oracle", "torch", *SHORT[2:]]) == 0
    assert "- torch: torch is not installed" in capsys.readouterr().out
    assert main(["--optimizer", "sgd", "--peer", "torch", *SHORT[2:]]) == 1  # nothing at all


def test_the_command_says_that_there_is_no_reference(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tests.oracles.sgd", None)
    assert main(["--optimizer", "sgd", *SHORT]) == 1
    assert "- oracle: there is no tests/oracles/sgd.py" in capsys.readouterr().out
