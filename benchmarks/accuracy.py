"""Accuracy with storage in few bits: `python -m benchmarks.accuracy [--markdown FILE] [--json FILE]`.

Every row has a bar. The runs that are compared differ only in the storage.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import jaxopt_keras as jk
from command import Parser, output_file, page_with, place, progress
from jaxopt_keras.optimizers import FUNCTIONS
from jaxopt_keras.storage import hash_rng
from jaxopt_keras.storage.rounding import stochastic

MARK = "<!-- accuracy -->"
FORMS = {"bfloat16": 0.15, "float16": 0.15, "float8": 0.15, "int8": 0.15, "int4": 0.5}  # the greatest excess loss
BYTES: dict[Any, float] = {"float32": 8.01, "bfloat16": 4.01, "int8": 2.2, "int4": 1.2}
REMEDIES: list[dict[str, Any]] = [
    *({"master_weights": kind} for kind in ("float32", "bf16+16", "bf16+8")),
    {"rounding": "stochastic"},
]
SEEDS = 5


class Row(NamedTuple):
    """One measurement."""

    study: str
    case: str
    value: float
    bar: float  # the greatest value allowed

    @property
    def holds(self) -> bool:
        return self.value <= self.bar


def regression(form: Any, steps: int = 400) -> float:
    """Return the final loss of two layers trained by AdamW; with float32 slots it is small."""
    rng = np.random.default_rng(0)
    x, hidden = jnp.asarray(rng.normal(size=(512, 16)), jnp.float32), jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    y = jnp.tanh(x @ hidden).sum(-1, keepdims=True)
    params = {
        name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
        for name, shape in {"in": (16, 256), "out": (256, 256), "last": (256, 1)}.items()
    }
    kernel = jk.adamw(jk.schedules.CosineDecay(3e-3, steps), state_dtype=form)

    def loss(p: Any) -> Any:
        return jnp.mean((jnp.tanh(jnp.tanh(x @ p["in"]) @ p["out"]) @ p["last"] - y) ** 2)

    def body(_: Any, carried: Any) -> Any:
        return kernel.step(carried[0], carried[1], jax.grad(loss)(carried[0]))

    params, _ = jax.jit(lambda *c: jax.lax.fori_loop(0, steps, body, c))(params, kernel.init(params))
    return float(loss(params))


def losses() -> list[Row]:
    exact = regression(None)
    return [
        Row("loss of a regression / float32's", form, regression(form) / exact, 1 + more)
        for form, more in FORMS.items()
    ]


def bias() -> list[Row]:
    """Measure the relative bias of the mean of 20 times 1e5 draws; chance alone gives up to 4e-5 for 1e5 draws."""
    info = jnp.finfo(jnp.bfloat16)
    numbers = {
        "1/3": 1 / 3, "a tie, 1 + 2^-8": 1 + 2**-8, "-0.7": -0.7, "near the greatest, 3.38e38": 3.38e38,
        "the greatest": float(info.max), "subnormal": float(info.smallest_normal) * 0.7,
    }  # fmt: skip
    rows = []
    for name, x in numbers.items():
        full = jnp.full(100_000, x, jnp.float32)
        drawn = [stochastic(full, jnp.bfloat16, hash_rng.seeds(0, ["w"], step)[0]) for step in range(20)]
        error = abs(np.mean(np.asarray(drawn).astype(np.float64)) / np.float64(np.float32(x)) - 1)
        rows.append(Row("bias of stochastic rounding", name, float(error), 3e-5))
    return rows


def small_updates() -> list[Row]:
    """Apply 1000 updates of -1e-3 to bfloat16 weights of 1, and measure the distance from 0."""
    rows = []
    for remedy in REMEDIES:
        kernel = jk.sgd(1e-3, **remedy)
        params = jnp.ones((64, 64), jnp.bfloat16)

        def body(_: Any, carried: Any, kernel: Any = kernel) -> Any:
            return kernel.step(*carried, jnp.ones((64, 64), jnp.bfloat16))

        params, _ = jax.jit(lambda *c, b=body: jax.lax.fori_loop(0, 1000, b, c))(params, kernel.init(params))
        (name,) = remedy.values()
        rows.append(
            Row("1000 updates of -1e-3 to 1, bfloat16", name, abs(float(params.astype(jnp.float32).mean())), 5e-3)
        )
    return rows


RATES = {
    "adadelta": 1.0,
    "adafactor": 0.03,
    "adagrad": 0.05,
    "ftrl": 0.3,
    "sgd": 0.2,
    "lion": 1e-3,
    "muon": 5e-3,
    "lamb": 5e-3,
}  # else 3e-3


def digits(name: str, form: Any, steps: int = 300) -> np.ndarray:
    """Return the test accuracy for each seed of a small network on scans of handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    kernel = FUNCTIONS[name](RATES.get(name, 3e-3), state_dtype=form)

    def logits(p: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p["in"]) @ p["out"]

    def loss(p: Any, i: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(p, x[i])), y[i][:, None], 1))

    def train(key: Any) -> Any:
        one, two, batches = jax.random.split(key, 3)
        params = {"in": jax.random.normal(one, (64, 128)) / 8, "out": jax.random.normal(two, (128, 32)) / 11}

        def body(carried: Any, key: Any) -> Any:
            i = jax.random.randint(key, (64,), 0, 1438)
            return kernel.step(carried[0], carried[1], jax.grad(loss)(carried[0], i)), None

        (params, state), _ = jax.lax.scan(body, (params, kernel.init(params)), jax.random.split(batches, steps))
        return jnp.mean(logits(kernel.averaged(params, state), x[1438:]).argmax(-1) == y[1438:])

    return np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), SEEDS)))


def rules() -> list[Row]:
    """Measure the accuracy lost with int8 slots; the bar is twice the spread over the seeds, or one picture in 100."""
    rows = []
    for name in FUNCTIONS:
        exact, stored = digits(name, None), digits(name, "int8")
        rows.append(
            Row("digits, int8 slots: accuracy lost, of float32's", f"{name} ({exact.mean():.3f})",
                float(exact.mean() - stored.mean()), max(2 * float(exact.std()), 0.01))
        )  # fmt: skip
    return rows


def sizes() -> list[Row]:
    params = {"w": jax.ShapeDtypeStruct((4096, 1024), jnp.float32), "b": jax.ShapeDtypeStruct((1024,), jnp.float32)}
    rows = []
    for form, bar in BYTES.items():
        plan = jk.adamw(state_dtype=form).describe(params)
        rows.append(Row("AdamW: bytes of state per parameter", form, plan.bytes / plan.elements, bar))
    half = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16)
    small = jk.adamw(state_dtype="int8", master_weights="bf16+8").describe(half)
    return [*rows, Row("with the bfloat16 parameter", "bf16+8, int8", 2 + small.bytes / small.elements, 5.2)]


def markdown(rows: list[Row]) -> str:
    lines = ["| study | case | measured | at most | |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.study} | {r.case} | {r.value:.3g} | {r.bar:.3g} | {'' if r.holds else 'FAILS'} |" for r in rows]
    return "\n".join(lines)


STUDIES = {
    "losses of a regression": losses, "bias of rounding": bias, "small updates": small_updates,
    "digits, with every optimizer": rules, "sizes": sizes,
}  # fmt: skip


def parser() -> Parser:
    parser = Parser("benchmarks.accuracy", __doc__)
    add = parser.add_argument
    add("--markdown", metavar="FILE", type=page_with(MARK), help=f"write the table, between two lines {MARK} if any")
    add("--json", metavar="FILE", type=output_file, help="write the rows here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    rows = []
    with progress("accuracy", len(STUDIES)) as tell:
        for i, (name, study) in enumerate(STUDIES.items()):
            tell(i, name)
            rows += study()
    table = Table("study", "case", "measured", "at most", "")
    for r in rows:
        table.add_row(r.study, r.case, f"{r.value:.3g}", f"{r.bar:.3g}", "" if r.holds else "[red]FAILS")
    Console().print(table)
    if args.markdown:
        place(args.markdown, MARK, markdown(rows))
    if args.json:
        args.json.write_text(json.dumps([r._asdict() for r in rows], indent=2))
    return 0 if all(r.holds for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
