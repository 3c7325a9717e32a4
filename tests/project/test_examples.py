"""Every example runs, says what it should, and draws something."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

import jaxopt_keras as jk
from examples import common, custom_loop, custom_optimizers, demo, lenet, linear_regression, schedules

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example's `main` in a few steps; returns what it prints."""

    def call(example: Any, *arguments: str) -> str:
        example.main(["--quick", "--out", str(tmp_path), *arguments])
        return capsys.readouterr().out

    return call


def assert_drawn(path: Path) -> None:
    """The picture is a PNG of some size, with more on it than paper."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert path.read_bytes().startswith(b"\x89PNG") and min(pixels.shape[:2]) > 300
    painted = np.mean(np.any(pixels != pixels[0, 0], axis=-1))
    assert 0.01 < painted < 0.9, f"{painted:.1%} of {path.name} is painted"


def number_after(text: str, output: str) -> float:
    found = re.search(re.escape(text) + r":?\s*([-+.\deE]+)", output)
    assert found, f"`{text}` is not in:\n{output}"
    return float(found[1])


def test_custom_loop(run: Run, tmp_path: Path):
    output = run(custom_loop)
    assert number_after("Epoch  2: loss", output) < number_after("Epoch  1: loss", output)
    assert "After set_weights: iterations = 10" in output
    assert number_after("Greatest difference of a weight between two halves and one batch", output) < 1e-6
    assert_drawn(tmp_path / "custom_loop.png")


def test_schedules(run: Run, tmp_path: Path):
    output = run(schedules)
    for kind in jk.schedules.__all__:
        if kind.endswith(("Decay", "Restarts")):
            assert re.search(rf"^{kind}\b", output, re.MULTILINE), f"{kind} is not shown"
    assert "Step 1: the next rate is 0.010000" in output
    assert "Step 10000: the next rate is 0.009000" in output
    assert "learning_rate set to 0.10" in output
    assert_drawn(tmp_path / "schedules.png")
    assert_drawn(tmp_path / "changed_rate.png")


def test_linear_regression(run: Run, tmp_path: Path):
    output = run(linear_regression)
    losses = [float(loss) for loss in re.findall(r"^Epoch: \d+, Loss: (\d+\.\d\d)$", output, re.MULTILINE)]
    by_hand, by_sgd = np.split(np.array(losses), 2)
    np.testing.assert_array_equal(by_hand, by_sgd)
    assert np.all(np.diff(by_hand) <= 0)
    assert number_after("Greatest difference of a loss between both", output) < 1e-4
    assert_drawn(tmp_path / "linear_regression.png")


def test_linear_regression_keeps_values_not_variables():
    x = jnp.linspace(0, 1, 20)

    def update(model: linear_regression.Regression, da: jax.Array, db: jax.Array) -> None:
        model.a.assign_sub(da * 0.01)

    _, history = linear_regression.fit(update, x, 1 + x, epochs=3)
    assert history.a == sorted(set(history.a)) and history.b == [0, 0, 0]


def test_custom_optimizers(run: Run, tmp_path: Path):
    output = run(custom_optimizers)
    assert number_after("Greatest difference of a loss between the four", output) < 1e-5
    assert "{'learning_rate': 0.01}, {'rad': 0.01}" in output
    assert "Sparse gradient updates are not supported." in output
    assert_drawn(tmp_path / "custom_optimizers.png")


def test_lenet(run: Run, tmp_path: Path):
    output = run(lenet)
    assert "44,426 parameters" in output and "TestGD" in output
    assert 0 <= number_after("Test accuracy", output) <= 1
    assert_drawn(tmp_path / "lenet.png")
    assert_drawn(tmp_path / "lenet_history.png")
    header, *rows = (tmp_path / "lenet_history.csv").read_text().splitlines()
    assert header.startswith("step,") and len(rows) == 5


def test_lenet_has_the_parameters_of_lenet():
    params = lenet.init()
    assert sum(p.size for p in params.values()) == 44_426
    assert lenet.logits(params, jnp.zeros((3, 28, 28, 1))).shape == (3, 10)
    assert float(lenet.loss(params, jnp.zeros((3, 28, 28, 1)), jnp.zeros(3, jnp.int32))) == pytest.approx(np.log(10))


def test_digits_are_split_once_for_all():
    data, again = common.digits(), common.digits()
    assert len(data.x_train) == 1438 and len(data.x_test) == 359
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    assert set(data.y_test) == set(range(10))
    held_out = demo.for_validation(data)
    assert len(held_out.x_train) + len(held_out.x_test) == len(data.x_train)


def mnist_file(path: Path, leave_out: Sequence[str] = ()) -> Path:
    """A file like Keras's, with fewer pictures in it."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (130, 28, 28), np.uint8),
        "y_train": rng.integers(0, 10, 130, np.uint8),
        "x_test": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "y_test": rng.integers(0, 10, 20, np.uint8),
    }
    np.savez(path, allow_pickle=False, **{name: a for name, a in arrays.items() if name not in leave_out})
    return path


def test_batches_move_the_pictures():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 28, 28, 1)).astype(np.float32)
    ((moved, y),) = lenet.batches(common.Digits(x, np.arange(64, dtype=np.int32), x, np.zeros(64, np.int32)), 64, rng)
    assert moved.shape == x.shape and sorted(y) == list(range(64))
    for picture, original in zip(moved, x[y], strict=True):
        places = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if original[10 + i, 10 + j] == picture[10, 10]]
        ((i, j),) = places
        np.testing.assert_array_equal(picture[4:-4, 4:-4], original[4 + i : 24 + i, 4 + j : 24 + j])


def test_mnist(tmp_path: Path):
    data = lenet.load(mnist_file(tmp_path / "mnist.npz"))
    assert data.x_train.shape == (130, 28, 28, 1) and data.x_test.dtype == np.float32
    assert data.x_train.mean() == pytest.approx(0, abs=1e-5) and data.x_train.std() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"must be Keras's mnist.npz.*without \['y_test'\]"):
        lenet.load(mnist_file(tmp_path / "short.npz", leave_out=["y_test"]))


def test_demo(run: Run, tmp_path: Path):
    mnist = mnist_file(tmp_path / "mnist.npz")
    output = run(demo, "--optimizers", "lion", "--mnist", str(mnist), "--epochs", "2")
    assert "1 optimizers, two faces of each, 2 epochs" in output
    assert "Lion, pure: 4 steps" in output and "Lion, stateful: 4 steps" in output
    row = re.search(r"│ Lion +│(.+)│", output)
    assert row and float(row[1].split("│")[-1]) <= 1e-5, output
    assert_drawn(tmp_path / "demo.png")


def run_of(last_loss: float, accuracy: float) -> demo.Run:
    losses = [2.0] * 23 + [last_loss]
    return demo.Run(np.array(losses), np.ones(len(losses)), accuracy)


@pytest.mark.parametrize(
    ("pure", "stateful", "message"),
    [
        (
            run_of(1.0, 0.99),
            run_of(1.1, 0.99),
            "faces of Adam must agree. Their losses differ by 1.0e-01",
        ),
        (run_of(np.nan, 0.99), run_of(np.nan, 0.99), "faces of Adam must agree"),
        (run_of(1.0, 0.9), run_of(1.0, 0.9), "Adam should recognise 97% of the digits: 90.00%"),
    ],
)
def test_demo_fails_clearly(pure: demo.Run, stateful: demo.Run, message: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(demo, "compare", lambda *_: {"Adam": (pure, stateful)})
    with pytest.raises(SystemExit, match=message):
        demo.main(["--out", str(tmp_path), "--optimizers", "adam"])


def test_faces_agree(monkeypatch: pytest.MonkeyPatch):
    """Every optimizer of the demo, a few steps of a small network: the losses of both faces are equal to rounding."""
    rng = np.random.default_rng(0)
    start = {name: jnp.asarray(rng.normal(size=(6, 6)), jnp.float32) for name in ("first", "second")}

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(x @ params["first"]) @ params["second"] - jnp.float32(y)[:, None]))

    monkeypatch.setattr(lenet, "init", lambda seed=0: start)
    monkeypatch.setattr(lenet, "loss", loss)
    monkeypatch.setattr(lenet, "accuracy", lambda *_: 1.0)
    monkeypatch.setattr(lenet, "batches", lambda data, size, rng: common.batches(data.x_train, data.y_train, size, rng))
    x, y = rng.normal(size=(640, 6)).astype(np.float32), rng.integers(0, 2, 640).astype(np.int32)
    data = common.Digits(x, y, x[:5], y[:5])
    runs = demo.compare(list(demo.CHOICES.values()), data, epochs=2, seed=0, console=Console(quiet=True))
    assert len(runs) == len(demo.CHOICES)
    for title, (pure, stateful) in runs.items():
        assert len(pure.losses) == 20 and np.all(np.isfinite(pure.losses)), title
        assert demo.difference(pure, stateful) <= 1e-5, title


def test_runs_as_a_program(tmp_path: Path):
    command = [sys.executable, "-m", "examples.linear_regression", "--quick", "--out", str(tmp_path / "plots")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Epoch: 9, Loss: " in done.stdout
    assert_drawn(tmp_path / "plots" / "linear_regression.png")
