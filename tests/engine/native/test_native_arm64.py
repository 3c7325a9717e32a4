"""The native loops on another processor: arm64, by a cross compiler and an emulator, beside this machine's.

Needs `aarch64-linux-gnu-gcc` and `qemu-aarch64` (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user), and is
skipped without them. What XLA does around a loop is left out: a small program hands it arrays from a file.
"""

import platform
import shutil
import struct
import subprocess

import jax
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import build, unavailable
from jaxopt_keras.engine.native.fusion import Fusion
from jaxopt_keras.engine.native.ir import trace_of
from jaxopt_keras.engine.native.render_c import render_c
from tests.laws.cases import draw

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
pytestmark = pytest.mark.skipif(
    bool(unavailable()) or not (shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"needs {CROSS} and {EMULATOR}",
)

PROGRAM = r"""
#include <stdio.h>
static XLA_FFI_Error* one_thread(XLA_FFI_ThreadPool_NumThreads_Args* a) { *a->num_threads = 1; return 0; }
static int64_t number(FILE* f) { int64_t n; return fread(&n, 8, 1, f) == 1 ? n : (exit(2), 0); }

int main(int count, char** path) {
  FILE *in = fopen(path[1], "rb"), *out = fopen(path[2], "wb");
  int64_t sides[2] = {number(in), number(in)}, sizes[64];
  XLA_FFI_Buffer* buffers[2][64];
  for (int s = 0; s < 2; s++)
    for (int i = 0; i < sides[s]; i++) {
      XLA_FFI_Buffer* b = buffers[s][i] = calloc(1, sizeof *b);
      b->rank = number(in), b->dims = calloc(b->rank + 1, 8);
      for (int d = 0; d < b->rank; d++) b->dims[d] = number(in);
      sizes[i] = number(in), b->data = aligned_alloc(64, (sizes[i] + 127) / 64 * 64);
      if (!s && fread(b->data, 1, sizes[i], in) != sizes[i]) return 2;
    }
  XLA_FFI_Api api = {.XLA_FFI_ThreadPool_NumThreads = one_thread};
  XLA_FFI_CallFrame f = {.struct_size = sizeof f, .api = &api};
  f.args.size = sides[0], f.args.args = (void**)buffers[0];
  f.rets.size = sides[1], f.rets.rets = (void**)buffers[1];
  if (handler(&f)) return 3;
  for (int i = 0; i < sides[1]; i++) fwrite(buffers[1][i]->data, 1, sizes[i], out);
  return fclose(out);
}
"""

KERNELS = {
    "adamw": jk.adamw(0.1, global_clipnorm=1.0),
    "lamb": jk.lamb(0.1),
    "lion": jk.lion(0.1, rounding="stochastic"),
    "int8": jk.adam(0.1, state_dtype="int8"),
    "int4": jk.nadam(0.1, state_dtype="int4", master_weights="bf16+8"),
    "float16": jk.adamax(0.1, state_dtype="float16"),
}


def loops(kernel):
    """The different loops of a step over two arrays, each as one of its leaves."""
    dtype = "bfloat16" if kernel.options.master_weights or kernel.options.rounding == "stochastic" else "float32"
    params = draw({"w": (40, 128), "b": (17,)}, 0, dtype)
    state = kernel.init(params)
    trace, _ = trace_of(kernel.program.bare_step, params, state, params, kernel.hyper())
    regions = [region for region in Fusion(trace).regions if not region.reason]
    return {leaf.loop: leaf for region in regions for leaf in region.leaves.values()}.values()


STRANGE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 6e4]


def drawn(x, rng, strange):
    """Numbers for an operand of a loop."""
    dtype = np.dtype(x.aval.dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100, x.shape).astype(dtype)
    numbers = rng.uniform(0.1, 1.0, x.shape)
    if strange:
        numbers.flat[: len(STRANGE)] = rng.permutation(STRANGE)
    return numbers.astype(dtype)


def words(x):
    if np.dtype(x.aval.dtype).kind in "iu":
        return [3]
    return [struct.unpack("<I", struct.pack("<f", 0.5))[0]]


def run(leaf, folder, command, emulator=()):
    """The results of a leaf's loop on drawn numbers, compiled by `command`."""
    rng, folder = np.random.default_rng(0), folder / command[0].replace("/", "_")
    folder.mkdir()
    scalars = np.array([w for x in leaf.scalars for w in words(x)] or [0], np.uint32)[None]
    codes = any(np.dtype(x.aval.dtype).kind in "iu" for x in leaf.inputs)
    operands = [scalars, *(drawn(x, rng, not codes) for x in leaf.inputs)]
    results = [np.zeros(x.shape, x.aval.dtype) for x in leaf.outputs]
    results += [np.zeros((1, len(leaf.totals)), np.float32)] * bool(leaf.totals)
    with (folder / "in").open("wb") as file:
        file.write(struct.pack("<2q", len(operands), len(results)))
        for array in (*operands, *results):
            file.write(struct.pack(f"<{array.ndim + 2}q", array.ndim, *array.shape, array.nbytes))
            file.write(array.tobytes() if any(array is x for x in operands) else b"")
    (folder / "loop.c").write_text(render_c(leaf.loop) + PROGRAM)
    flags = [x for x in build.FLAGS if x not in ("-shared", "-fPIC")]
    include = [f"-I{jax.ffi.include_dir()}", f"-I{build.RUNTIME.parent}"]
    libraries = ["-lm"] if emulator else ["-lmvec", "-lm"]
    subprocess.run([*command, *flags, *include, "loop.c", "-o", "loop", *libraries], cwd=folder, check=True)
    subprocess.run([*emulator, "./loop", "in", "out"], cwd=folder, check=True)
    found, at = (folder / "out").read_bytes(), 0
    arrays = []
    for x in results:
        arrays.append(np.frombuffer(found, x.dtype, x.size, at).reshape(x.shape))
        at += x.nbytes
    return arrays


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is not x86-64")
@pytest.mark.parametrize("name", KERNELS)
def test_arm64_gives_what_this_machine_gives(name, tmp_path):
    for k, leaf in enumerate(loops(KERNELS[name])):
        folder = tmp_path / str(k)
        folder.mkdir()
        here = run(leaf, folder, build.compiler())
        there = run(leaf, folder, [CROSS, "-static"], [EMULATOR])
        assert any(np.any(x) for x in here)
        for a, b in zip(here, there, strict=True):
            if a.dtype.kind in "iu":  # codes: a last place before them may be one of them after
                assert np.sum(a != b) <= 2 + 1e-3 * a.size
            else:
                a, b = a.astype(np.float64), b.astype(np.float64)
                np.testing.assert_allclose(a, b, rtol=1e-2 if name in ("lion", "int4", "bfloat16") else 1e-5)
