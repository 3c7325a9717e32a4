"""Times the first call of an optimizer in new processes, by its parts: with empty caches, and once more with full ones.

    python -m benchmarks.first_call [--workload gpt2] [--step adamw "adamw, int8 slots"] [--json FILE]
    JAX_PLATFORMS=cpu python -m benchmarks.first_call --described

The caches are JAX's persistent one and that of the library. `--described` compiles for the H100 of `hlo.py` and runs
nothing. Every number is seconds; other work on the machine adds to them.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from benchmarks.workloads import WORKLOADS
from command import Parser, output_file, progress

CASES = ["adamw", "adamw, int8 slots", "adamw, bf16+8, int8 slots", "adamw, global norm", "lamb"]
PARTS = ("import", "init", "trace", "lower", "compile", "run")
FULL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def times(workload: str, step: str, described: bool) -> dict[str, float]:
    """Return the seconds of each part of a first call in this process, which has done nothing yet."""
    last, found = time.perf_counter(), dict[str, float]()

    def done(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        found[part], last = now - last, now

    import jax
    import jax.numpy as jnp

    import jaxopt_keras as jk

    done("import")
    from benchmarks import kernels
    from benchmarks.hlo import with_our_kernels

    kernel, dtype = kernels.STEPS[step]
    shapes: Any = {k: jax.ShapeDtypeStruct(s, jnp.dtype(dtype)) for k, s in WORKLOADS[workload].shapes.items()}
    shapes = jax.eval_shape(jk.pack, shapes) if step.startswith("packed") else shapes
    if described:
        params = kernels.placed(shapes)
        state, hyper = kernels.placed(jax.eval_shape(kernel.program.init, params, kernel.hyper())), kernel.hyper()
        hyper = kernels.placed(hyper)
    else:
        params = jax.block_until_ready(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        hyper = kernel.hyper()
        last = time.perf_counter()
        state = jax.block_until_ready(kernel.init(params))
        done("init")
    grads = params if described else jax.tree.map(jnp.zeros_like, params)
    with with_our_kernels():
        last = time.perf_counter()
        traced = kernel.compiled.step_donating.trace(params, state, grads, hyper)
        done("trace")
        lowered = traced.lower()
        done("lower")
        compiled = lowered.compile()
        done("compile")
    if not described:
        jax.block_until_ready(compiled(params, state, grads, hyper))
        done("run")
    return found


def measured(workload: str, step: str, described: bool) -> dict[str, dict[str, float]]:
    """Return the seconds of a first call with empty caches, and with those that it has filled."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "JAXOPT_KERAS_CACHE": f"{folder}/loops"}
        child = f"import benchmarks.first_call as b; b.print_times({workload!r}, {step!r}, {described})"
        command = [sys.executable, "-c", child]
        found = {}
        for name in ("cold", "cached"):
            done = subprocess.run(command, env=os.environ | FULL | caches, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_times(workload: str, step: str, described: bool) -> None:
    """Print the times, in the new process."""
    print(json.dumps(times(workload, step, described)))


def parser() -> Parser:
    from benchmarks.kernels import STEPS  # here, because a new process times its imports

    steps = [name for name, (kernel, _) in STEPS.items() if kernel is not None]
    parser = Parser("benchmarks.first_call", __doc__)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["gpt2"], help="default: gpt2")
    parser.add_argument("--step", nargs="+", choices=steps, default=CASES, help=f"default: {', '.join(CASES)}")
    parser.add_argument("--described", action="store_true", help="compile for an H100 that is not here")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the results")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(argv)
    rows = []
    print(
        f"| workload | step | caches | {' | '.join(PARTS)} | all but import |",
        "| --- " * (len(PARTS) + 4) + "|",
        sep="\n",
    )
    for workload in chosen.workload:
        for step in chosen.step:
            with progress(workload) as tell:
                tell(0, f"first call of {step}")
                found = measured(workload, step, chosen.described)
            for caches, seconds in found.items():
                rows.append({"workload": workload, "step": step, "caches": caches, "seconds": seconds})
                each = " | ".join(f"{seconds[x]:.2f}" if x in seconds else "-" for x in PARTS)
                whole = sum(seconds.values()) - seconds["import"]
                print(f"| {workload} | {step} | {caches} | {each} | {whole:.2f} |", flush=True)
    if chosen.json:
        about: dict[str, Any] = {"command": "python -m benchmarks.first_call " + shlex.join(argv or sys.argv[1:])}
        about |= {name: version(name) for name in ("jax", "jaxlib")}
        about |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "load": os.getloadavg()[0], "cores": os.cpu_count()}
        chosen.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
