"""Launches kernels through the custom call for PTX that XLA has for GPUs, which needs no library of our own.

The call is internal to XLA, without a promise. So it is tried once in a process with small kernels whose results are
checked (`probe.py`), and without that XLA runs all equations. The aliases of the call make it write in place, and XLA
can make it a node of a CUDA graph.
"""

import contextvars
import ctypes
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.build import Unavailable
from jaxopt_keras.engine.native.cuda import nvrtc
from jaxopt_keras.engine.native.cuda.kernel import NAME
from jaxopt_keras.engine.native.cuda.launch import Kernel
from jaxopt_keras.engine.native.cuda.render import THREADS

TARGET = "__gpu$xla.gpu.ptx"
OLDEST = 12010  # the driver's version that allows 4095 pointers
PTX = {12010: "8.1", 12020: "8.2", 12030: "8.3", 12040: "8.4", 12050: "8.5", 12060: "8.5", 12070: "8.6", 12080: "8.7"}
# The form of kernels that the probe is trying, in the thread that tries it.
TRIED: contextvars.ContextVar[str | None] = contextvars.ContextVar("tried", default=None)


class Ptx:
    """Launches kernels on the GPUs of this machine.

    Attributes:
        described: the compute capability, as "9.0", of a GPU that is not here, for which programs are compiled only.
    """

    described: str | None = None

    def unavailable(self) -> str:
        if self.described is not None or TRIED.get() is not None:
            return ""
        try:
            gpu()
        except Unavailable as error:
            return build.brief(error)
        return _probed()

    def launch(self, made: Kernel, results: list[Any], aliases: dict[int, int], operands: list[Any]) -> Sequence[Any]:
        if self.described is not None:
            form, arch, newest = "table", nvrtc.architecture(self.described), None
        else:
            form, arch, newest = probed_form(), nvrtc.architecture(gpu().compute_capability), driver()
        text = fitted(nvrtc.compiled(made.source(form), arch), made, form, newest)
        return call(text, results, aliases, operands, made.blocks)


@functools.cache
def gpu() -> Any:
    """The first GPU of NVIDIA.

    Raises:
        Unavailable: if there is none.
    """
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        raise Unavailable("there is no GPU of NVIDIA") from None


@functools.cache
def driver() -> int:
    """The newest version of CUDA that the driver supports, as 12040 for 12.4.

    Raises:
        Unavailable: if it is too old, or does not answer.
    """
    found = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except OSError as error:
        raise Unavailable(f"the driver cannot be loaded: {error}") from None
    if failed:
        raise Unavailable(f"the driver does not say its version: error {failed}")
    if found.value < OLDEST:
        raise Unavailable(f"the driver is older than CUDA 12.1. Received: {found.value}")
    return found.value


def newest_ptx(driver: int) -> str:
    """The version of PTX that a driver accepts."""
    if driver >= 13000:
        return f"9.{driver % 1000 // 10}"
    return PTX.get(driver, "8.8" if driver > max(PTX) else "8.1")


def fitted(ptx: str, made: Kernel, form: str, driver: int | None) -> str:
    """The PTX of a source with the table and the parameters of a kernel, for a driver.

    Raises:
        Unavailable: if the PTX does not have the expected declarations.
    """
    words = f"TABLE[{len(made.table)}] = {{{', '.join(map(str, made.table.tolist()))}}};"
    changes = [(r"(\.const \.align 4 )\.b8 TABLE\[\d+\];", rf"\1.u32 {words}")]
    if form == "table":
        parameters = ",\n".join(f"\t.param .u64 {NAME}_param_{k}" for k in range(made.parameters))
        changes.append((rf"\s*\.param \.align 8 \.b8 {NAME}_param_0\[\d+\]", f"\n{parameters}"))
    said = re.search(r"\.version (\d+)\.(\d+)", ptx)
    if driver is not None and said is not None:
        newest = newest_ptx(driver)
        if tuple(map(int, newest.split("."))) < tuple(map(int, said.groups())):
            changes.append((re.escape(said[0]), f".version {newest}"))
    for pattern, new in changes:
        ptx, count = re.subn(pattern, new, ptx, count=1)
        if not count:
            raise Unavailable(f"NVRTC {nvrtc.version()} writes another PTX: there is no `{pattern}`")
    return ptx


def call(ptx: str, results: list[Any], aliases: dict[int, int], operands: list[Any], blocks: int) -> Sequence[Any]:
    """The custom call."""
    one = np.int32(1)
    return jax.ffi.ffi_call(TARGET, results, input_output_aliases=aliases)(
        *operands, name=NAME, kernel_type="ptx", kernel_data=ptx, grid_x=np.int32(blocks), grid_y=one, grid_z=one,
        block_x=np.int32(THREADS), block_y=one, block_z=one, shared_mem_bytes=np.int32(0),
    )  # fmt: skip


def probed_form() -> str:
    """The form of kernels that the device of this process runs with right results; while it is tried, that form.

    Raises:
        Unavailable: if there is none.
    """
    from jaxopt_keras.engine.native.cuda.probe import form  # which uses the whole engine

    return TRIED.get() or form()


@functools.cache
def _probed() -> str:
    """Why the probe fails; "" if it does not."""
    try:
        probed_form()
    except Unavailable as error:
        return build.fallback(error) if jax.default_backend() == "gpu" else build.brief(error)
    return ""
