"""CUDA C++ to PTX by NVRTC, which comes with `jax[cuda13]` and `jax[cuda12]`; no toolkit and no compiler is needed.

The cache is that of `build.py`, with its rules: files of the user's own that match their digest.
"""

import ctypes
import functools
import hashlib
import importlib.util
import pathlib
from typing import Any

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.build import Unavailable

DEVICE = pathlib.Path(__file__).with_name("device.h")
HEADERS = {"device.h": DEVICE.read_text(), "conversions.h": (DEVICE.parents[1] / "conversions.h").read_text()}
# XLA divides with the same accuracy of 2 last places; a root is off by one at most.
FLAGS = ("--std=c++17", "--prec-div=false", "--prec-sqrt=false")


@functools.cache
def library() -> ctypes.CDLL:
    """Load NVRTC: from the packages of NVIDIA, that of JAX's plugin first, else from the system.

    Raises:
        Unavailable: where there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [pathlib.Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    majors = sorted(("12", "13"), key=lambda major: importlib.util.find_spec(f"jax_cuda{major}_plugin") is None)
    names = [f"libnvrtc.so.{major}" for major in majors]
    for path in [*(p for name in names for f in folders for p in f.glob(f"*/lib/{name}")), *map(pathlib.Path, names)]:
        try:
            if path.is_absolute():  # otherwise NVRTC may not find this part of it
                for part in path.parent.glob(f"libnvrtc-builtins.so{path.suffix}*"):
                    ctypes.CDLL(str(part))
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise Unavailable("there is no NVRTC: `pip install nvidia-cuda-nvrtc`")


@functools.cache
def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@functools.cache
def architecture(capability: str) -> str:
    """The newest architecture that NVRTC knows and that runs on a device.

    Args:
        capability: of the device, as "9.0".

    Raises:
        Unavailable: if there is none.
    """
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(known)
    fit = [arch for arch in known if arch <= int(capability.replace(".", ""))]
    if not fit:
        raise Unavailable(f"NVRTC {version()} has no code for devices of compute capability {capability}")
    return f"compute_{max(fit)}"


@functools.lru_cache(maxsize=128)
def compiled(source: str, arch: str) -> str:
    """The PTX of a source, from the cache or by NVRTC.

    Raises:
        Unavailable: if it does not compile.
    """
    said = "\0".join([source, arch, version(), *FLAGS, *HEADERS.values()])
    path = build.folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.ptx"
    found = build.kept(path)
    if found is None:
        found = _compiled(source, arch)
        build.keep(path, found)
    return found.decode()


def _compiled(source: str, arch: str) -> bytes:
    nvrtc, program = library(), ctypes.c_void_p()
    names, texts = ([x.encode() for x in side] for side in (HEADERS, HEADERS.values()))
    array = lambda items: (ctypes.c_char_p * len(items))(*items)
    options = [x.encode() for x in (f"--gpu-architecture={arch}", *FLAGS)]
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", len(names), array(texts), array(names)
    )
    if made:
        raise Unavailable(f"NVRTC fails with error {made}")
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(options), array(options))
        if failed:
            said = _text(program, "ProgramLog").decode(errors="replace").strip()
            raise Unavailable(f"NVRTC fails: {build.first_error(said)}\n{said[:2000]}")
        return _text(program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: Any, what: str) -> bytes:
    """The log or the result of a program."""
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, text)
    return text.value
