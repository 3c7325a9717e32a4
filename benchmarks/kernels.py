"""Counts the kernels of a step on a GPU or a TPU and the bytes that they move, in the program that XLA compiles.

    python -m benchmarks.kernels [--workload one lenet5] [--step adamw lamb] [--page]
    python -m benchmarks.kernels --device v5e [--step adamw "int8 slots"] [--page]
    python -m benchmarks.kernels --device v5e --all [--mesh] [--done FILE]

XLA compiles for the GPU of the machine, or without one for the H100 of `hlo.py`. This needs only JAX's plugin and
CUDA's compilers, which `make gpu` installs in .venv-gpu.
For a TPU it compiles with `pip install "jax[tpu]"`, and JAX_PLATFORMS=cpu.
"""

import functools
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

import jaxopt_keras as jk
from benchmarks import tpu, tpu_all, tpu_steps
from benchmarks.hlo import device, launches, with_our_kernels
from benchmarks.tpu_done import Done
from benchmarks.workloads import WORKLOADS
from command import Parser, output_file, place, progress
from jaxopt_keras.language.places import Places

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
MARK = "<!-- kernels -->"
MISSING = "There is neither a GPU nor JAX's plugin for CUDA. `make gpu` installs it in .venv-gpu"

ADAMW: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.01}
STEPS: dict[str, tuple[Any, str]] = {  # the kernel (None for optax's AdamW), and the dtype of the parameters
    "optax adamw": (None, "float32"),
    "adamw": (jk.adamw(**ADAMW), "float32"),
    "adamw, global norm": (jk.adamw(**ADAMW, global_clipnorm=1.0), "float32"),
    "adamw, int8 slots": (jk.adamw(**ADAMW, state_dtype="int8"), "float32"),
    "adamw, bf16+8, bf16 slots": (jk.adamw(**ADAMW, master_weights="bf16+8", state_dtype="bfloat16"), "bfloat16"),
    "adamw, bf16+8, int8 slots": (jk.adamw(**ADAMW, master_weights="bf16+8", state_dtype="int8"), "bfloat16"),
    "adamw, skip_nonfinite": (jk.adamw(**ADAMW, skip_nonfinite=True), "float32"),
    "adamw, accumulation": (jk.adamw(**ADAMW, gradient_accumulation_steps=4), "float32"),
    "lion": (jk.lion(1e-4), "float32"),
    "lamb": (jk.lamb(1e-3), "float32"),
    "adamw by XLA": (jk.adamw(**ADAMW, engine="xla"), "float32"),
    "adamw, int8 slots, by XLA": (jk.adamw(**ADAMW, state_dtype="int8", engine="xla"), "float32"),
}
STEPS |= {f"packed {name}": step for name, step in STEPS.items() if name.startswith("adamw")}
STEPS |= {
    f"{name}, flat state": (jk.Kernel(kernel.rule, kernel.options.replaced(flat_state=True)), dtype)
    for name, (kernel, dtype) in STEPS.items()
    if kernel is not None and kernel.options.engine == "auto" and not name.startswith("packed")
}
FEW = ["optax adamw", "adamw", "packed adamw"]
CASES = {
    "one": [name for name in STEPS if not name.startswith("packed") and "flat" not in name],
    "lenet5": [*FEW, "lamb"],
    "gpt2": [
        *FEW, "adamw, global norm", "adamw, skip_nonfinite", "adamw, accumulation", "adamw, int8 slots", "lamb",
        "adamw by XLA", *(f"{name}, flat state" for name in ("adamw", "adamw, int8 slots", "lamb")),
    ],
    "hundred": FEW,
    "many": ["adamw", "packed adamw"],  # by XLA 1000 kernels take minutes
}  # fmt: skip


def placed(tree: Any) -> Any:
    """Return the shapes and dtypes of `tree`, placed on the device."""
    where = SingleDeviceSharding(device())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


class Counts(NamedTuple):
    kernels: int  # launches except copies, also those for a few scalars
    copies: int
    bytes: int  # operands and results of every launch
    least: int  # bytes of one read of gradients, parameters and state, and one write of parameters and state
    kept: int  # arrays of parameters and state
    aliased: int  # arrays of parameters and state that are written in place
    temporary: int  # bytes
    seconds: float  # to compile

    def row(self) -> str:
        passes, mib = f"{self.bytes / self.least:.2f}", f"{self.temporary / 2**20:.1f}"
        return f"{self.kernels} | {self.copies} | {self.aliased} of {self.kept} | {passes} | {mib} | {self.seconds:.0f}"


def counted(kernel: Any, params: Any) -> Counts:
    """Count the kernels of a donated step of `kernel` (None: optax's AdamW) on `params`, shapes and dtypes."""
    params = placed(params)
    if kernel is None:
        import optax

        transform = optax.adamw(**ADAMW)
        moving = placed(jax.eval_shape(transform.init, params))

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, moving, params)
    else:
        with with_our_kernels():
            with Places.of(params).traced():
                moving = placed(jax.eval_shape(kernel.program.init, params, kernel.hyper()))
            lowered = kernel.compiled.step_donating.lower(params, moving, params, placed(kernel.hyper()))
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None  # programs compiled by XLA have both
    launched = launches(text)
    copies = sum(name == "copy" for name, _ in launched)
    least = 3 * jk.nbytes(params) + 2 * jk.nbytes(moving)
    kept, aliased = len(jax.tree.leaves((params, moving))), len(re.findall(r"m[a-z]+-alias\)", text.splitlines()[0]))
    moved, temporary = sum(size for _, size in launched), memory.temp_size_in_bytes
    return Counts(len(launched) - copies, copies, moved, least, kept, aliased, temporary, seconds)


def parser() -> Parser:
    parser = Parser("benchmarks.kernels", __doc__)
    parser.add_argument("--device", choices=("h100", *tpu.CHIPS), default="h100", help="or the GPU of the machine")
    parser.add_argument("--workload", nargs="+", choices=CASES, default=list(CASES))
    steps = [*dict.fromkeys([*STEPS, *tpu_steps.STEPS])]
    parser.add_argument(
        "--step", nargs="+", choices=steps, help="default: a selection for each workload; for a TPU all"
    )
    parser.add_argument("--all", action="store_true", help="for a TPU: small arrays, every rule, option and wrapper")
    parser.add_argument("--mesh", action="store_true", help="with --all: on a mesh of 2 x 2 chips")
    parser.add_argument(
        "--done", type=output_file, metavar="FILE",
        help="for a TPU: keep the counts in this file, and do not compile again what it has",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="write the table into docs/gpu.md or docs/tpu.md")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    known = tpu_steps.STEPS if arguments.device in tpu.CHIPS else STEPS
    if unknown := [name for name in arguments.step or () if name not in known]:
        parser().error(f"argument --step: must be of {[*known]} for {arguments.device}. Received: {unknown}")
    if arguments.all and (arguments.device not in tpu.CHIPS or arguments.step or arguments.page):
        parser().error(f"argument --all: goes with --device {' or '.join(tpu.CHIPS)}, without --step and --page")
    if arguments.mesh and not arguments.all:
        parser().error("argument --mesh: goes with --all")
    if arguments.done and arguments.device not in tpu.CHIPS:
        parser().error(f"argument --done: goes with --device {' or '.join(tpu.CHIPS)}")
    if arguments.all:
        return every_one(arguments.device, arguments.mesh, arguments.done)
    if arguments.device in tpu.CHIPS:
        return of_tpu(arguments.device, arguments.step or [*known], arguments.page, arguments.done)
    if device() is None:
        parser().exit(1, MISSING + f", of version {version('jaxlib')}\n")
    lines = [
        f"Counted, not timed: {datetime.now(UTC):%Y-%m-%d}, jax {jax.__version__}, {device().device_kind}.", "",
        "| workload | step | kernels | copies | in place | passes | temporary MiB | compiled in s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print(*lines, sep="\n")
    for workload in arguments.workload:
        for name in arguments.step or CASES[workload]:
            kernel, dtype = STEPS[name]
            tree = {k: jax.ShapeDtypeStruct(s, jnp.dtype(dtype)) for k, s in WORKLOADS[workload].shapes.items()}
            tree = jax.eval_shape(jk.pack, tree) if name.startswith("packed") else tree
            with progress(workload) as tell:
                tell(0, f"compiling {name}")
                lines.append(f"| {WORKLOADS[workload].about} | {name} | {counted(kernel, tree).row()} |")
            print(lines[-1], flush=True)
    if arguments.page:
        place(PAGE, MARK, "\n".join(lines))


def of_tpu(chip: str, steps: list[str], page: bool, done: Path | None) -> None:
    """Print the table for a TPU."""
    kept = Done(done, f"{chip}, table")
    lines = [_about_tpu(chip), "", tpu_steps.HEAD]
    print(*lines, sep="\n")
    for name in steps:
        with progress(chip) as tell:
            tell(0, f"compiling {name}")
            counts = kept.get(name, functools.partial(tpu_steps.counted, tpu_steps.STEPS[name], chip))
            lines.append(f"| {name} | {counts if isinstance(counts, str) else counts.row()} |")
        print(lines[-1], flush=True)
    if page:
        place(PAGE.with_name("tpu.md"), f"<!-- {chip} -->", "\n".join(lines))


def every_one(chip: str, on_mesh: bool, done: Path | None) -> None:
    """Print a row for each rule, option and wrapper on a TPU, and which are refused or not in place."""
    print(_about_tpu(chip), "", tpu_all.HEAD, sep="\n")
    found = {}
    for name, counts in tpu_all.counts(chip, on_mesh, done=done):
        found[name] = counts
        print(f"| {name} | {tpu_all.row(counts)} |", flush=True)
    print("", tpu_all.summary(found), sep="\n")


def _about_tpu(chip: str) -> str:
    if not tpu.devices(chip):
        parser().exit(1, tpu.MISSING + "\n")
    return f"Counted, not timed: {datetime.now(UTC):%Y-%m-%d}, jax {jax.__version__}, {chip}."


if __name__ == "__main__":
    main()
