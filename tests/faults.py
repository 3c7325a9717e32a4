"""Faults planted in the library, one line each, and the test that catches each.

    python -m tests.faults [--only N ...] [--write]

A test that cannot fail proves nothing. This program copies the project, checks that the tests named here pass there,
then plants one fault after the other and demands that its test fails. `--write` puts the table into `tests/README.md`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "tests" / "README.md"
MARK = "<!-- faults -->"


class Fault(NamedTuple):
    """One changed line."""

    file: str  # in the package
    right: str  # a part of one line, which occurs once
    wrong: str
    meaning: str
    test: str  # arguments of pytest

    @property
    def planted(self) -> str:
        text = (ROOT / "jaxopt_keras" / self.file).read_text()
        assert text.count(self.right) == 1, f"{self.file}: {self.right!r} occurs {text.count(self.right)} times"
        return text.replace(self.right, self.wrong)


def oracle(name: str) -> str:
    return f"tests/test_parity_oracles.py -k {name}"


def law(name: str, case: str = "") -> str:
    return f"tests/laws/test_{name}.py" + (f" -k '{case}'" if case else "")


FAULTS = [
    # Rules
    Fault("rules/sgd.py", "inside * g if self.nesterov else v", "inside * g if False else v",
          "Nesterov's look ahead is missing", oracle("sgd-keras")),
    Fault("rules/rmsprop.py", "b = at.lr * g / jnp.sqrt(d)", "b = at.lr * g / (jnp.sqrt(n) + self.epsilon)",
          "epsilon outside the root", oracle("rmsprop-keras")),
    Fault("rules/adam.py", "jnp.sqrt(peak) + epsilon", "jnp.sqrt(peak + epsilon)",
          "epsilon inside the root", oracle("adam-keras")),
    Fault("rules/adam.py", "/ (1 - self.beta_1**at.t)", "",
          "no bias correction of the momentum", oracle("adam-keras")),
    Fault("rules/adam.py", "square(g), self.beta_2)", "square(g), self.beta_1)",
          "a swapped beta", oracle("adam-optax")),
    Fault("rules/adam.py", "peak = h * correction", "peak = h",
          "AMSGrad's maximum used without its correction", oracle("adam-optax")),
    Fault("rules/adadelta.py", "square(u), self.rho)", "square(g), self.rho)",
          "gradients accumulated in the place of steps", oracle("adadelta-keras")),
    Fault("rules/adagrad.py", "return -at.lr * g", "return -1.01 * at.lr * g",
          "the rate is 1 % off", oracle("adagrad-keras")),
    Fault("rules/adamax.py", "self.beta_2 * s.norm", "s.norm",
          "the norm never decays", oracle("adamax-keras")),
    Fault("rules/adafactor.py", "r_full.mean(rows,", "r_full.mean(columns,",
          "rows normalised over the wrong axis", oracle("test_adafactor_factors")),
    Fault("rules/nadam.py", "ahead = mu_next * m", "ahead = mu * m",
          "today's momentum in the place of tomorrow's", oracle("nadam-keras")),
    Fault("rules/ftrl.py", "jnp.clip(z, -l1, l1) - z", "-z",
          "l1 does nothing", oracle("ftrl-keras")),
    Fault("rules/lion.py", "self.State(ema(s.momentum, g, self.beta_2))", "self.State(ema(s.momentum, g, self.beta_1))",
          "a swapped beta", oracle("lion-keras")),
    Fault("rules/lamb.py", "jnp.where(usable, u_norm, 1), 1)", "jnp.where(usable, u_norm, 1), 0)",
          "parameters that are zero never start", oracle("lamb-keras")),
    Fault("rules/muon.py", "self.muon_c * a @ a", "self.muon_c * a",
          "the quintic term is cubic", oracle("muon-keras")),
    Fault("rules/schedule_free_adamw.py", "1 / at.t", "1 / (at.t + 1)",
          "the average is one step behind", oracle("schedule_free_adamw-keras")),
    # Numerics and the rule language
    Fault("numerics.py", "return self.complement if isinstance(other, int) and other == 1 else other - self.value",
          "return other - self.value", "1 - beta from a float32 beta",
          "tests/test_numerics.py -k complemented"),
    Fault("numerics.py", "jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype", "dtype",
          "bfloat16 arithmetic and slots", law("low_precision_follows_float32", "AdamW")),
    Fault("rule.py", "return self.bind(dict.fromkeys(self.traced(), TRACED))", "return self",
          "numbers are constants of the program", law("one_compilation", "Adam")),
    Fault("rule.py", "return complemented(value, dtype)", "return complemented(0.9, dtype)",
          "every decay is 0.9 once it is traced", law("traced_equals_static", "Adam-keras")),
    Fault("rules/lamb.py", 'grain: ClassVar = "leaf"', 'grain: ClassVar = "element"',
          "a rule of norms that claims to be of elements", law("grain", "Lamb-keras")),
    # The pipeline and what runs in it
    Fault("engine/pipeline.py", "decayed = [p if d is None else p - d", "decayed = [p if d is None else p",
          "decay after the rule in the place of before", oracle("lamb-keras")),
    Fault("engine/pipeline.py", "if g is None or not leaf.decays:", "if g is None:",
          "what is excluded decays", oracle("sgd-keras")),
    Fault("engine/pipeline.py", "return Now((step + 1)", "return Now((step + 2)",
          "the first step is the second", oracle("adam-keras")),
    Fault("functional.py", "init=jax.jit(program.init)", "init=program.init",
          "slots that are the parameter itself", law("init_can_be_donated")),
    Fault("engine/pipeline.py", "d is None or p is None else p + d", "d is None or p is None else p - d",
          "`step` goes uphill, `update` does not", law("update_and_add_equals_step", "SGD-keras")),
    Fault("storage/forms.py", "return stochastic(x.astype(jnp.float32), like.dtype, salt())", "return x",
          "slots that grow to float32 again", law("storage_follows_float32", "nearly and bfloat16-Adam-")),
    Fault("engine/pipeline.py", "return Now((step + 1).astype(dtype)", "return Now((step + 1).astype(jnp.float32)",
          "a float32 clock under x64", law("x64", "Adam-keras")),
    Fault("engine/pipeline.py", "slots[i] = slots[i] | kept  #", "slots[i] = kept  #",
          "slots that a user made get lost", "tests/test_weights.py -k survives"),
    Fault("engine/rows.py", ".add(values)", ".set(values)",
          "of duplicate rows only one counts", law("sparse_equals_dense", "lazy and SGD-keras")),
    Fault("engine/rows.py", "indices = jnp.where(indices < 0, indices + count, indices)", "indices = indices + 0",
          "negative rows are dropped", law("sparse_equals_dense", "lazy and SGD-keras")),
    Fault("functional.py", "if any(isinstance(p, jax.ShapeDtypeStruct)", "if all(isinstance(p, int)",
          "`init` wants real arrays", law("init_needs_no_arrays", "SGD-keras")),
    Fault("functional.py", "return Kernel, (self.rule, self.options)", "return Kernel, (self.rule,)",
          "a pickle without the options", law("pickled_equals_original", "Adam-keras")),
    # Stages
    Fault("transforms/accumulate.py", "None if g is None else s / k", "None if g is None else s",
          "the sum in the place of the mean", law("accumulation_equals_mean", "SGD-keras")),
    Fault("transforms/accumulate.py", "jnp.where(first, 0 if", "jnp.where(micro < 0, 0 if",
          "the sum never starts anew", law("accumulation_equals_mean", "SGD-keras")),
    Fault("transforms/accumulate.py", "s[SUM] = jnp.zeros_like(p)", "s[SUM] = jnp.zeros_like(p, jnp.bfloat16)",
          "a sum whose type changes at the first call", law("types_are_a_fixed_point", "every_stage")),
    Fault("transforms/clip.py", "g * c / jnp.maximum(norm(g), c)", "g * c / norm(g)",
          "small gradients are scaled up", oracle("adamw-keras")),
    Fault("transforms/average.py", "jnp.where(step == 0, 1, 1 - beta)", "jnp.where(step < 0, 1, 1 - beta)",
          "the start value lingers in the average", oracle("adam-keras")),
    Fault("transforms/average.py", "(step + 1) % frequency", "step % frequency",
          "overwritten a step late", oracle("adam-keras")),
    # Faces
    Fault("settings.py", "self._rate_at(state.step)", "self._rate_at(state.step + 1)",
          "the schedule is a step ahead", "tests/test_optimizer.py -k 'test_pure_equals_stateful and averaged-SGD'"),
    Fault("handles.py", "return value if sys.getrefcount(value) <= _ALONE else jnp.copy(value)", "return value",
          "a step deletes what a user kept", "tests/test_optimizer.py -k test_take_copies"),
    Fault("gradients.py", "g if id(v) in read else None for", "g for",
          "zeros in the place of None", "tests/test_gradients.py -k not_read"),
    Fault("views.py", "*(p for p in scalars if p not in micro), *_grouped(state, paths, split), *ours",
          "*(p for p in scalars if p not in micro), *ours, *_grouped(state, paths, split)",
          "averages before the slots that tf.keras had", "tests/test_weights.py -k tf_keras"),
    Fault("copies.py", "if unbound.get(path) == tuple(h.shape):", "if path in unbound:",
          "a copy gives a variable the slots of another shape", "tests/test_serialization.py -k another_shape"),
    Fault("schedules/decays.py", 'step, method="compare_all")', 'step, side="right", method="compare_all")',
          "the rate changes at its boundary, not after it", "tests/test_schedules.py -k Piecewise"),
]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="the numbers of the faults to plant")
    parser.add_argument("--write", action="store_true", help="write the table into tests/README.md")
    chosen = parser.parse_args(arguments)
    numbered = [(n, fault) for n, fault in enumerate(FAULTS, 1) if chosen.only is None or n in chosen.only]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
            if (ROOT / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        broken = sorted({fault.test for _, fault in numbered if failed(copy, fault.test)})
        for test in broken:
            print(f"fails without any fault: {test}")
        missed = [n for n, fault in numbered if not caught(copy, n, fault)]
    print(f"{len(numbered) - len(missed)} of {len(numbered)} faults were caught. Missed: {missed}")
    if chosen.write:
        PAGE.write_text(page())
    return 1 if broken or missed else 0


def caught(copy: Path, number: int, fault: Fault) -> bool:
    """Plants one fault in `copy`, runs its test, and takes the fault out again."""
    path = copy / "jaxopt_keras" / fault.file
    right = path.read_text()
    path.write_text(fault.planted)
    try:
        caught = failed(copy, fault.test)
    finally:
        path.write_text(right)
    print(f"{number:3} {'caught' if caught else 'MISSED'}  {fault.file}: {fault.meaning}", flush=True)
    return caught


def failed(copy: Path, test: str) -> bool:
    """Whether a test ran and failed: not whether it could not be found or imported."""
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -p no:xdist {test}"
    environment = os.environ | {"PYTHONPATH": str(copy)}
    run = subprocess.run(command, shell=True, cwd=copy, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1) or " error" in run.stdout.splitlines()[-1]:
        raise RuntimeError(f"{command} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 1


def table() -> str:
    """For a reader."""
    lines = ["| | file | right | wrong | | caught by |", "| --- | --- | --- | --- | --- | --- |"]
    for number, fault in enumerate(FAULTS, 1):
        right, wrong = (f"`{code}`".replace("|", "\\|") if code else "" for code in (fault.right, fault.wrong))
        lines.append(f"| {number} | {fault.file} | {right} | {wrong} | {fault.meaning} | `{fault.test}` |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """`tests/README.md` with the table between its marks."""
    before, _, after = PAGE.read_text().split(MARK)
    return f"{before}{MARK}\n\n{table()}\n{MARK}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
