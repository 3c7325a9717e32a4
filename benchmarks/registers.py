"""The registers of kernels for GPUs that are not here, by NVIDIA's assembler `ptxas`.

    python -m benchmarks.registers [--capability 8.0 9.0 10.0] [--step adamw lamb]

Registers decide how many threads share a processor of the GPU. Local memory would be numbers that do not fit into them:
none may be used. NVRTC and `ptxas` come with `pip install nvidia-cuda-nvrtc nvidia-cuda-nvcc`.
"""

import contextlib
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.hlo import with_our_kernels
from benchmarks.kernels import STEPS
from command import Parser
from jaxopt_keras.engine.native.cuda import ptx

SHAPES = {"w": (1024, 768), "b": (768,)}  # a kernel is the same for every model
MISSING = "There is no `ptxas`: `pip install nvidia-cuda-nvcc`"


class Assembled(NamedTuple):
    registers: int  # of a thread
    local: int  # bytes of memory for what does not fit into registers: stack and spills


def assembler() -> str | None:
    """Return the path of `ptxas`: that of the package of NVRTC, which knows its PTX, or one of the system."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(pathlib.Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return shutil.which("ptxas")


def assembled(text: str, capability: str) -> Assembled:
    """Return what `ptxas` says of PTX for a GPU of a compute capability, such as "9.0".

    Raises:
        ValueError: if it refuses the PTX.
    """
    program = assembler()
    if program is None:
        raise FileNotFoundError(MISSING)
    command = [program, "-v", f"--gpu-name=sm_{capability.replace('.', '')}", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    used = re.search(r"Used (\d+) registers", done.stderr)
    if done.returncode or found is None or used is None:
        raise ValueError(f"`ptxas` refuses the kernel: {done.stderr[:2000]}")
    return Assembled(int(used[1]), sum(map(int, found.groups())))


@contextlib.contextmanager
def launched(capability: str) -> Iterator[list[str]]:
    """Collect the PTX of the kernels of programs that are lowered for a GPU."""
    texts, call = list[str](), ptx.call
    with with_our_kernels(capability):
        ptx.call = lambda text, *rest: (texts.append(text), call(text, *rest))[1]
        try:
            yield texts
        finally:
            ptx.call = call


def of_step(kernel: Any, dtype: str, capability: str) -> list[Assembled]:
    """Return what each kernel of a step takes."""
    params = {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for name, shape in SHAPES.items()}
    state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    with launched(capability) as texts:
        step = jax.jit(kernel.program.step).trace(params, state, params, kernel.hyper())
        step.lower(lowering_platforms=("cuda",))
    return [assembled(text, capability) for text in texts]


def parser() -> Parser:
    parser = Parser("benchmarks.registers", __doc__)
    parser.add_argument("--capability", nargs="+", choices=["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])
    ours = [name for name, (kernel, _) in STEPS.items() if kernel is not None and "XLA" not in name]
    parser.add_argument("--step", nargs="+", choices=ours, default=[x for x in ours if not x.startswith("packed")])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if assembler() is None:
        parser().exit(1, MISSING + "\n")
    capabilities = arguments.capability or ["8.0", "9.0", "10.0"]
    print("| step | " + " | ".join(f"registers, {x}" for x in capabilities) + " | local memory, bytes |")
    print("| --- |" + " --- |" * (len(capabilities) + 1))
    most = 0
    for name in arguments.step:
        found = [of_step(*STEPS[name], capability) for capability in capabilities]
        most = max(most, local := max(x.local for each in found for x in each))
        cells = [", ".join(str(x.registers) for x in each) for each in found]
        print(f"| {name} | {' | '.join(cells)} | {local} |", flush=True)
    return int(most > 0)


if __name__ == "__main__":
    raise SystemExit(main())
