"""Runs the kernels for GPUs on a CPU, by their own source: the backend `InCuda(Grid())`.

With `JAXOPT_KERAS_TEST_DEVICE=grid` all tests run on it, in the place of the loops in C.
"""

import functools
import hashlib
import pathlib
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.cuda import kernel, nvrtc
from jaxopt_keras.engine.native.cuda.launch import Kernel

HEADER = pathlib.Path(__file__).with_name("cuda_grid.h")
INCLUDE = [f"-I{path}" for path in (jax.ffi.include_dir(), build.RUNTIME.parent, nvrtc.DEVICE.parent, HEADER.parent)]
FLAGS = ["-std=gnu++17", "-O1", "-march=native", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]
POINTERS = "const __grid_constant__ Pointers P"


@dataclass
class Grid:
    """Launches kernels on a CPU.

    Attributes:
        form: of kernels.
        backwards: run the last thread block first.
        changes: texts to replace in a source, for planted faults.
        seen: the sources of all launches.
    """

    form: str = "table"
    backwards: bool = False
    changes: tuple[tuple[str, str], ...] = ()
    launched: int = 0
    changed: int = 0
    seen: set[str] = field(default_factory=set)

    def unavailable(self) -> str:
        return ""

    def launch(self, made: Kernel, results: list[Any], aliases: dict[int, int], operands: list[Any]) -> Any:
        assert made.parameters <= kernel.POINTERS
        self.launched += 1
        source = made.source(self.form)
        self.seen.add(source)
        if self.changes:
            source = source.replace('#include "device.h"', nvrtc.HEADERS["device.h"])
        for old, new in self.changes:
            self.changed += source.count(old)
            source = source.replace(old, new)
        call = jax.ffi.ffi_call(compiled(source), results, input_output_aliases=aliases)
        return call(*operands, numbers=np.array([made.blocks, self.backwards, *made.table], np.int64))


@functools.cache
def compiled(source: str) -> str:
    """The name under which XLA knows a kernel, compiled once."""
    if POINTERS in source:
        source = source.replace(POINTERS, "const Pointers& P")  # each thread would copy them
        tail = f"static Pointers all;\nstatic void enter() {{ {kernel.NAME}(all); }}\n"
        tail += "static void begin(int64_t n) { for (int64_t k = 0; k < n; k++) all.a[k] = pointer(k); }\n"
    else:
        count = re.search(rf"{kernel.NAME}\((.*?)\)", source)[1].count("char* ")
        tail = f"static void enter() {{ {kernel.NAME}({', '.join(f'pointer({k})' for k in range(count))}); }}\n"
        tail += "static void begin(int64_t n) {}\n"
    source += f"{tail}static uint32_t* table() {{ return TABLE; }}\n"
    said = "\0".join([source, HEADER.read_text(), *nvrtc.HEADERS.values(), *FLAGS, *INCLUDE])  # of a version of JAX
    key = hashlib.sha256(said.encode()).hexdigest()[:32]
    path = build.folder() / f"grid_{key}.so"
    loaded = build.load(path)
    if loaded is None:
        with tempfile.TemporaryDirectory() as work:
            pathlib.Path(work, "kernel.cc").write_text(source)
            run = ["g++", *FLAGS, *INCLUDE, "-include", str(HEADER), "kernel.cc", "-o", "kernel.so"]
            done = subprocess.run(run, cwd=work, capture_output=True, text=True)
            assert not done.returncode, done.stderr[:3000]
            build.keep(path, pathlib.Path(work, "kernel.so").read_bytes())
        loaded = build.load(path)
    name = f"jaxopt_keras_grid_{key}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(loaded.handler), platform="cpu")
    return name
