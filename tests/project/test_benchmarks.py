"""The benchmarks: every workload runs, what is wrong is refused, and the numbers are what they say."""

import ast
import dataclasses
import graphlib
import io
import json
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from benchmarks import (
    agreement,
    gpu,
    gpu_muon,
    gpu_peers,
    limits,
    memory,
    ours,
    problem,
    records,
    report,
    roofline,
    timing,
)
from benchmarks.__main__ import main
from benchmarks.measure import AGAIN, grouped
from benchmarks.parity.peer import load
from benchmarks.peers import PEERS, optax
from benchmarks.runs import Implementation, Wish
from benchmarks.timing import LIMIT, Spread, Times
from benchmarks.workloads import WORKLOADS

TINY = ["--scale", "0.004", "--seconds", "0.01", "--rounds", "2", "--no-memory"]


def wish(workload: str, optimizer: str = "adamw", **changes) -> Wish:
    made = Wish(WORKLOADS[workload], problem.RULES[optimizer], "float32", ("float32",), "cpu", 1, ("optax", "keras"))
    return made._replace(**changes)


def bench(*arguments: str) -> str:
    console = Console(file=io.StringIO())
    assert main(arguments, console) == 0
    return console.file.getvalue()


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return those of `modules` that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            found |= {name if name in modules else node.module for name in names}
    return found & modules.keys()


def test_no_imports_go_in_a_circle():
    root = Path(memory.__file__).parent
    modules = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {name: imports(path, modules) for name, path in modules.items()}
    assert "benchmarks.memory" in graph["benchmarks.measure"]
    assert "benchmarks.peers.torch" in graph["benchmarks.peers"]
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is a circle, and names it


ONE_OF_EACH_KIND = ["lenet5", "embedding", "muon", "training"]  # the others differ in shapes


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_every_workload_can_be_made(workload):
    tiny = problem.to_time(workload.scaled(0.004), workload.optimizer, "float32")
    small = problem.to_compare(workload, workload.optimizer, "float32")
    for each in (tiny, small):
        assert each.params and each.params.keys() <= workload.shapes.keys() and len(each.given) > 0


def test_every_kind_of_workload_runs_and_the_json_comes_back(tmp_path: Path):
    path = tmp_path / "results.json"
    bench(*TINY, "--workload", *ONE_OF_EACH_KIND, "--peer", "optax", "--only", "^optax$|dense", "--json", str(path))
    record = records.read(path)
    assert record.json() == path.read_text()
    assert [table.workload for table in record.tables] == ONE_OF_EACH_KIND
    assert {WORKLOADS[name].kind for name in ONE_OF_EACH_KIND} == {each.kind for each in WORKLOADS.values()}
    assert json.loads(path.read_text())["schema"] == records.SCHEMA
    for table in record.tables:
        timed = [row for row in table.rows if row.note is None]
        assert {row.library for row in timed} == {"jaxopt_keras", "optax"}, table
        assert all(row.ms and row.ms.median > 0 and row.share and row.error is not None for row in timed)
        assert table.again and table.limit_ms.median > 0
        others = {row.name for row in timed}
        assert all(row.ratios.keys() == others - {row.name} for row in timed)
    assert report.markdown([record]).count("\n| ") == 2 + len(ONE_OF_EACH_KIND)
    roofline.draw(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_all_rows_of_one_table(tmp_path: Path):
    pytest.importorskip("keras")
    path = tmp_path / "results.json"
    peers = [peer.NAME for peer in PEERS.values() if peer.available("cpu") is None]
    text = bench(*TINY, "--workload", "lenet5", "--storage", "int8", "--json", str(path))
    (table,) = records.read(path).tables
    names = {row.name for row in table.rows if row.ms}
    assert {"step", "apply_gradients", "packed", "step, int8 state", "keras, eager", "optax, not donated"} <= names
    assert {row.library for row in table.rows if row.ms} == {"jaxopt_keras", *peers}
    absent = [row for row in table.rows if row.library not in ("jaxopt_keras", *peers)]
    assert absent and all(row.note and f"{row.name}: {row.note}" in text for row in absent)


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (["--workload", "resnet"], "resnet50"),
        (["--optimizer", "adamm"], "adamw"),
        (["--peer", "jax"], "optax"),
        (["--dtype", "float8"], "bfloat16"),
        (["--storage", "int3"], "int4"),
        (["--scale", "0"], "--scale: must be a number greater than 0. Received: 0"),
        (
            ["--only", "("],
            "--only: must be a regular expression (missing ), unterminated subpattern at position 0). Received: (",
        ),
        (["--rounds", "0"], "--rounds: must be a whole number of at least 1. Received: 0"),
        (["--threads", "9999"], "the cores here. Received: 9999"),
        (["--device", "tpu"], "JAX sees no tpu here"),
        (["--json", "nowhere/at/all.json"], "in a folder that exists. Received: nowhere/at/all.json"),
    ],
)
def test_errors_teach(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("jax_defaults")
def test_what_is_wrong_is_refused():
    """An epsilon in the wrong place, a wrong rate, and what raises."""
    given = problem.to_compare(WORKLOADS["lenet5"], "adamw", "float32")

    def hasty(problem):
        return ours.pure(dataclasses.replace(problem, rate=lambda count: 1.01 * problem.rate(count)), "optax")

    def broken(problem):
        raise MemoryError("too much")

    found = [
        Implementation("right", "", lambda problem: ours.pure(problem, "optax")),
        Implementation("epsilon", "", lambda problem: ours.pure(problem, "keras")),
        Implementation("hasty", "", hasty),
        Implementation("broken", "", broken),
    ]
    checks = agreement.agreements(found, given, lambda name: None)
    assert {name: check.passed for name, check in checks.items()} == {
        "right": True, "epsilon": False, "hasty": False, "broken": False,
    }  # fmt: skip
    assert checks["broken"].reason == "fails: MemoryError: too much"
    assert "differs from float64" in str(checks["epsilon"].reason)


def test_what_differs_at_full_size_is_refused():
    given = problem.to_time(WORKLOADS["lenet5"], "adamw", "float32")
    one, start = Implementation("", "", ours.pure), given.params

    def moved(by: float):
        return agreement.samples(given, {name: p + np.float32(by) for name, p in start.items()})

    assert agreement.disagreement(one, moved(0.1), moved(0.1), moved(0)) is None
    assert "at full size: `conv1/kernel`" in str(agreement.disagreement(one, moved(0.101), moved(0.1), moved(0)))


def test_the_train_step_s_reference_has_the_right_gradient():
    given = problem.to_compare(WORKLOADS["training"].scaled(0.02), "adamw", "float32")
    from benchmarks import models

    exact = models.gradient({name: p.astype(np.float64) for name, p in given.params.items()}, given.given[0])
    found = jax.grad(models.loss)(given.params, given.given[0])
    for name, g in exact.items():
        np.testing.assert_allclose(found[name], g, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "optimizer,expected",
    [("adamw", 28), ("lion", 20), ("sgd", 20), ("adagrad", 20), ("adadelta", 28), ("ftrl", 28), ("lamb", 40),
     ("adafactor", 20)],
)  # fmt: skip
def test_the_bytes_that_a_step_cannot_do_without(optimizer: str, expected: int):
    workload = dataclasses.replace(WORKLOADS["lenet5"], shapes={"w": (512, 512)})
    given = problem.to_time(workload, optimizer, "float32")
    slots = limits.slots_of(given, ours.state_bytes(given, "keras"))
    assert sum(each.bytes for each in limits.passes(given, slots)) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "adafactor"])
def test_streams_of_other_devices(optimizer: str):
    """Streams for a GPU and for a machine without a C compiler update their arrays in place."""
    over = limits.passes(problem.to_time(WORKLOADS["lenet5"].scaled(0.1), optimizer, "float32"), 2)
    jitted = limits.jitted_stream(over, 100)
    first, second = jitted(), jitted()
    assert all(x.is_deleted() for x in first) and not any(x.is_deleted() for x in second)
    assert len(second) == max(each.updates for each in over)
    limits.numpy_stream(over, 100)()


def test_quantized_slots_have_fewer():
    from benchmarks.measure import least_bytes

    given = problem.to_time(dataclasses.replace(WORKLOADS["lenet5"], shapes={"w": (512, 512)}), "adamw", "float32")
    limit = limits.Limit("", lambda: None, 28 * 512 * 512)
    int8 = Implementation("", "", ours.pure, storage="int8")
    assert 16 <= least_bytes(int8, given, limit, wish("lenet5")) / 512**2 < 16.2


@pytest.mark.usefixtures("jax_defaults")
def test_donated_steps_copy_no_array():
    """The peer is at its best; and in a train step, where XLA copies what both passes read, ours is no worse."""
    run = optax.run(problem.to_time(WORKLOADS["lenet5"].scaled(0.5), "adamw", "float32"))
    text = run.compiled().as_text()
    assert text.count("may-alias") + text.count("must-alias") >= 3 * len(run.carried[0])
    assert not re.search(r"\[\d.*\] copy\(", text)
    given = problem.to_time(WORKLOADS["training"].scaled(0.05), "adamw", "float32")
    copies = [run.compiled().as_text().count(" copy(") for run in (ours.train(given, "optax"), optax.run(given))]
    assert copies[0] <= copies[1] + 1, copies  # its step count is one more scalar


@pytest.mark.usefixtures("jax_defaults")
def test_memory_is_that_of_parameters_and_state(capsys: pytest.CaptureFixture[str]):
    request = {
        "workload": "hundred", "optimizer": "adamw", "dtype": "float32", "scale": 0.02, "storages": ["float32"],
        "threads": 1, "variants": ["optax"], "platform": "cpu", "implementation": "step", "library": "jaxopt_keras",
    }  # fmt: skip
    memory.main(request)
    found = memory.Memory(**json.loads(capsys.readouterr().out))
    parameters = WORKLOADS["hundred"].scaled(0.02).parameters
    assert 12 * parameters <= found.held <= 12 * parameters + 100
    assert found.peak >= found.held


def test_ratios_are_within_rounds():
    """The machine halves its speed after two rounds, and one round is unsteady: ratios know nothing of it."""
    speed = np.array([1.0, 1.0, 2.0, 2.0, 2.0])
    seconds = {LIMIT: speed, "one": 3 * speed, "other": np.where([1, 0, 1, 0, 1], 6 * speed, np.nan)}
    seconds["one"][4] = 100
    times = Times(seconds, np.array([True, True, True, True, False]))
    assert times.ratio("one", "other") == Spread(0.5, 0.5, 0.5, 2)
    assert times.ratio("other", LIMIT) == Spread(6, 6, 6, 2)
    assert times.ratio("one", "nobody") is None


def test_interleaving_measures():
    class Waits:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.steps = seconds, 0

        def step(self) -> None:
            self.steps += 1
            timing.time.sleep(self.seconds)

        def block(self) -> None: ...

    runs = {LIMIT: Waits(1e-3), "quick": Waits(2e-3), "slow": Waits(20e-3)}
    told = []
    times = timing.interleaved(runs, 0.3, 10, told.append, np.random.default_rng(0))
    ratio = times.ratio("slow", "quick")
    assert ratio and 6 < ratio.median < 10.5
    assert told[-1] == 1 and all(b > a for a, b in zip(told, told[1:], strict=False))
    assert runs["slow"].steps < runs["quick"].steps


def test_groups_fit_into_memory():
    given = problem.to_time(WORKLOADS["lenet5"], "adamw", "float32")
    unit = sum(p.nbytes for p in given.params.values())
    timed = [Implementation(name, "", ours.pure) for name in ("step", "optax", "a", "b", "c")]
    names = [[each.name for each in group] for group in grouped(timed, timed[1], given, 100 * unit)]
    assert names == [["step", "optax", AGAIN, "a", "b", "c"]]
    names = [[each.name for each in group] for group in grouped(timed, timed[1], given, 18 * unit)]
    assert names == [["step", "optax", AGAIN, "a"], ["step", "optax", "b", "c"]]


def test_rows_are_checked_by_a_lazy_reference():
    given = problem.to_compare(WORKLOADS["embedding"], "adam", "float32")
    lazy, dense = (agreement.reference(given, "keras", sparse)["table"] for sparse in ("lazy", "dense"))
    start = given.params["table"]
    untouched = np.setdiff1d(np.arange(len(start)), np.concatenate([g["table"].indices for g in given.given]))
    np.testing.assert_array_equal(lazy[untouched], start[untouched])
    assert np.abs(lazy - dense).max() > 1e-3  # what was touched once goes on moving


def test_the_readme_has_what_the_results_say():
    found, root = report.results(), Path(__file__).parents[2]
    for path, table in ((root / "README.md", report.summary(found)), (report.PAGE, report.markdown(found))):
        page = path.read_text()
        assert report.placed(page, table) == page, "python -m benchmarks --readme"
        tables = [[line for line in block.splitlines() if line.startswith("|")] for block in table.split("\n\n")]
        for lines in filter(None, tables):
            columns = zip(*(line.split(" | ") for line in lines[2:]), strict=True)
            assert all(any(cell.strip("| ") != "-" for cell in column) for column in columns), lines[0]
    with pytest.raises(ValueError, match="must have two lines"):
        report.placed("no marks", "")


def test_records_of_something_else_are_refused(tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text('{"schema": 0, "tables": []}')
    with pytest.raises(ValueError, match="that `python -m benchmarks --json` wrote"):
        records.read(path)


def test_every_peer_says_what_it_can_do():
    for peer in PEERS.values():
        reason = peer.available("tpu")
        assert reason is None or isinstance(reason, str)
        if peer.available("cpu") is None:
            assert all(each.library == peer.NAME for each in peer.implementations(wish("lenet5", "lion")))
    if PEERS["torch"].available("cpu") is None:
        (refused,) = PEERS["torch"].implementations(wish("lenet5", "lion"))
        assert "torch.optim.Lion" in str(refused.refused)
        assert load("torch").get_num_threads() >= 1


def test_steps_on_a_gpu_are_checked_before_they_are_timed(monkeypatch, tmp_path, capsys, jax_defaults):
    chosen = gpu.OWN, "gpt2 adamw, int8"
    monkeypatch.setattr(gpu, "ROWS", [row for row in gpu.ROWS if row.name in chosen])
    monkeypatch.setattr(gpu, "CALLS", 2)
    assert gpu.main(["--dry-run", "--json", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    for row in found["rows"]:
        assert row["verdict"] == "not timed" and row["error"] < 1e-6 and row["engine"] == "native"
        assert len(row["first"]) == 2
    assert found["rows"][1]["to"] == gpu.OWN and found["rows"][1]["ratio"] > 0
    assert 0 < found["training"]["gradients"] and "the optimizer's part" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main([])
    assert capsys.readouterr().err == gpu.MISSING + "\n"


def test_a_wrong_step_on_a_gpu_is_said_before_any_time(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ROWS", gpu.ROWS[:1])
    monkeypatch.setattr(gpu, "error", lambda row: float("nan"))
    monkeypatch.setattr(gpu, "bandwidth", lambda tiny: pytest.fail("a time") if not capsys.readouterr().out else 1e12)
    monkeypatch.setattr(gpu, "training", lambda tiny: {"step": 1.0, "gradients": 1.0, "optimizer": 0.0})
    assert gpu.main(["--dry-run"]) == 1


def test_peers_on_a_gpu(monkeypatch):
    times = gpu_peers.Times(1e-3, 2e-3)
    monkeypatch.setattr(gpu_peers, "times", lambda peer, *_: times if peer == "torch" else f"{peer} is not here")
    own, int8 = (next(row for row in gpu.ROWS if row.name == name) for name in (gpu.OWN, "gpt2 adamw, int8"))
    assert gpu.compared(own, False, None)[0] is times
    other, said = gpu.compared(int8, False, times._replace(device=1.0))
    assert other.device == 1.0 and said == ["bitsandbytes is not here", "torchao is not here"]


def test_peers_that_cannot_run_say_why(monkeypatch):
    assert isinstance(gpu_peers.times("torch", WORKLOADS["lenet5"], "float32"), str)  # there is no GPU
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr(gpu_peers, "load", lambda name: fake)
    assert gpu_peers.times("torch", WORKLOADS["lenet5"], "float32").startswith("torch fails: AttributeError")


def test_muon_on_a_gpu_is_checked_and_judged(tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"):  # optax raises a Python number to the power of a count
        assert gpu_muon.main(["--dry-run", "--json", str(tmp_path / "muon.json")]) == 0
    rows = json.loads((tmp_path / "muon.json").read_text())["rows"]
    assert [x["verdict"] for x in rows] == ["not timed"] * len(gpu_muon.KERNELS)
    with pytest.raises(SystemExit):
        gpu_muon.main([])
    assert capsys.readouterr().err == gpu.MISSING + "\n"
    assert gpu_muon.operations([(3, 2), (4, 4)], 1) == 2 * (2 * 2 * 3 + 2 * 2 * 2 + 2 * 2 * 3) + 3 * 2 * 4**3
    found = gpu_muon.Result("muon", 0.01, 1e-3, 0.6, 0.5, 1.0, "")
    slow = {"share": 0.59}, {"of_optax": 0.51}, {"of_torch": 1.01}
    assert {gpu_muon.judged(found._replace(**x), False) for x in slow} == {"FAIL"}
    assert [met for _, met in gpu_muon.bars(found)] == [True] * 3
    assert [met for _, met in gpu_muon.bars(found._replace(share=0.5, of_torch=None))] == [False, True, None]
    assert gpu_muon.judged(found._replace(of_torch=None), False) == "pass, no torch"
    assert gpu_muon.judged(found, False) == "pass" and gpu_muon.judged(found._replace(error=0.5), False) == "WRONG"


def test_verdicts_on_a_gpu():
    found = gpu.Measured("native", 0.0, seconds=2e-3, first=(1.0, 0.5), call=3e-3, bytes=8_000_000_000)
    row = gpu.Row("a", "gpt2", None, "torch", 0.9, 0.8, call=1.1, first=(3.0, 1.0))
    times = lambda device, call=3e-3: gpu_peers.Times(device, call)
    verdict = lambda found, other, copy: gpu.judged(row, found, other, copy, False)["verdict"]
    assert verdict(found, times(3e-3), 4e12) == "pass"
    assert verdict(found, times(2e-3), 4e12) == "FAIL (ratio)"
    assert verdict(found, times(3e-3), 6e12) == "FAIL (share)"
    assert verdict(found, times(3e-3, 1e-3), 4e12) == "FAIL (call)"
    assert verdict(found._replace(first=(4.0, 2.0)), times(3e-3), 4e12) == "FAIL (first, from the cache)"
    assert verdict(found, None, 4e12) == "no torch"
    assert verdict(found._replace(error=float("nan")), times(3e-3), 4e12) == "WRONG"
