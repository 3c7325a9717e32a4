"""C source to a function that XLA can call: compiled by the system's compiler once for each machine, then from a cache.

The cache is a folder of the user's own, named by `JAXOPT_KERAS_CACHE` or in the usual place for caches. A library is
loaded only if folder and file belong to the user, other users cannot write them, and the digest that is stored next to
the library matches.

Where nothing can be compiled XLA runs instead, which is never silent: `Kernel.describe` shows why, and a warning is
logged once. With `JAXOPT_KERAS_FALLBACK=error` it is an error.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile

import jax

RUNTIME = pathlib.Path(__file__).with_name("runtime.h")
HEADERS = (RUNTIME, *(RUNTIME.with_name(name) for name in ("ffi.h", "conversions.h")))
PROBE = RUNTIME.with_name("probe.c").read_text()
# Strict arithmetic (no -ffast-math: NaN and infinity count), but without errno and traps.
FLAGS = (
    *("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fwrapv", "-fopenmp-simd"),
    *("-fPIC", "-shared", "-w"),
)
# GCC's partial redundancy elimination makes jumps out of choices between values, and a loop with jumps is not
# vectorized. clang refuses the flag.
FLAGS_OF_GCC = ("-fno-tree-pre",)
log = logging.getLogger("jaxopt_keras")


class Unavailable(RuntimeError):
    """There is no compiler, or it fails. The message is the reason, in brief in its first line."""


def compiler() -> list[str]:
    """The command of the compiler: `CC`, or `cc`.

    Raises:
        Unavailable: where there is none.
    """
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise Unavailable(f"no C compiler: there is no `{' '.join(command)}`")
    return command


def unavailable() -> str:
    """Why no loop can be compiled on this machine, in one line; "" where loops can be.

    Raises:
        Unavailable: where that is so, with `JAXOPT_KERAS_FALLBACK=error`.
    """
    if os.name != "posix":
        return f"no compiled loops on {platform.system()}"
    return _probed(os.environ.get("CC", "cc"))


@functools.cache
def _probed(command: str) -> str:
    """Why the compiler cannot make the smallest loop; "" where it can. Each compiler is tried once."""
    try:
        library(PROBE)
    except Unavailable as error:
        return fallback(error) if jax.default_backend() == "cpu" else brief(error)
    return ""


def fallback(error: Unavailable) -> str:
    """Say, once, that XLA runs what a loop could. The result is the reason, in one line.

    Raises:
        Unavailable: `error`, with `JAXOPT_KERAS_FALLBACK=error`.
    """
    action = os.environ.get("JAXOPT_KERAS_FALLBACK", "warn")
    if action not in ("warn", "error"):
        raise ValueError(f'`JAXOPT_KERAS_FALLBACK` must be "warn" or "error". Received: {action!r}')
    if action == "error":
        raise error
    say('XLA runs what compiled loops could, and slower (with `engine="xla"`, without this line): %s', str(error))
    return brief(error)


@functools.cache
def say(text: str, reason: str) -> None:
    """Log a warning, once."""
    log.warning(text, reason)


def brief(error: Unavailable) -> str:
    return str(error).partition("\n")[0]


@functools.cache
def version(command: tuple[str, ...]) -> str:
    """Return the version that the compiler prints."""
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"`{' '.join(command)} --version` fails: {error}") from None


@functools.cache
def identity(command: tuple[str, ...]) -> str:
    """Return what a library depends on besides its source: compiler, flags, processor and XLA's interface."""
    processor = platform.processor() + platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((x for x in lines if x.startswith(("flags", "Features"))), "")
    header = pathlib.Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_bytes()
    ours = [path.read_text() for path in HEADERS]
    said = [*command, version(command), processor, hashlib.sha256(header).hexdigest(), *ours]
    return "\n".join([*said, *FLAGS, *FLAGS_OF_GCC])


def tuning(source: str = "") -> tuple[str, ...]:
    """The flags for this processor. Loops over 8 or 16 bit integers are bound by arithmetic, so they use wide vectors.

    Only if these divide the block: the elements that are left at its end are computed one by one. With blocks of 120
    and vectors of 16 that would be half of the time.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return ("-mcpu=native",)
    block = re.search(r"#define BLOCK (\d+)", source)
    fills = block is None or block[1] == "1" or int(block[1]) % 16 == 0
    wide = platform.machine() == "x86_64" and fills and ("int8_t" in source or "int16_t" in source)
    return ("-march=native", *(("-mprefer-vector-width=512",) if wide else ()))


def folder() -> pathlib.Path:
    """The cache: a folder that is the user's alone; one for this process only where there can be no such folder."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(os.environ.get("JAXOPT_KERAS_CACHE") or pathlib.Path(home, "jaxopt_keras", "native"))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(path) and os.access(path, os.W_OK | os.X_OK):
            return path
        reason = "it can be written by others, or not by the user"
    except OSError as error:
        reason = str(error)
    return _own_folder(f"{path}: {reason}", os.getpid())


@functools.cache
def _own_folder(reason: str, process: int) -> pathlib.Path:
    """A folder until `process` ends. One that is forked makes its own, and leaves this one when it ends."""
    log.warning("compiled loops are not kept for later processes (%s)", reason)
    path = pathlib.Path(tempfile.mkdtemp(prefix="jaxopt_keras_"))
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == process else None)
    return path


def is_private(path: pathlib.Path) -> bool:
    """Whether the user owns `path` and no other user can write to it. Links are not followed."""
    found = path.lstat()
    return found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and not found.st_mode & 0o022


@functools.cache
def target(source: str) -> str:
    """The name under which XLA knows the compiled `source`.

    Raises:
        Unavailable: where it cannot be compiled or loaded.
    """
    key, loaded = library(source)
    name = f"jaxopt_keras_{key}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(loaded.handler), platform="cpu")
    return name


def library(source: str) -> tuple[str, ctypes.CDLL]:
    """The compiled `source`, from the cache or by the compiler, and its name there."""
    command = compiler()
    key = hashlib.sha256("\0".join([source, identity(tuple(command)), *tuning(source)]).encode()).hexdigest()[:32]
    path = folder() / f"{key}.so"
    loaded = load(path) or load(compiled(source, path, command))
    if loaded is None:  # a file system that is mounted `noexec`
        path = _own_folder(f"{path.parent}: nothing can be loaded from there", os.getpid()) / path.name
        loaded = load(compiled(source, path, command))
    if loaded is None:
        raise Unavailable(f"the compiled loop cannot be loaded from {path.parent}")
    return key, loaded


def load(path: pathlib.Path) -> ctypes.CDLL | None:
    """The library at `path`; None if it does not exist, is not the user's own, or does not match its digest."""
    try:
        return None if kept(path) is None else ctypes.CDLL(str(path))
    except OSError:
        return None


def kept(path: pathlib.Path) -> bytes | None:
    """A file of the cache; None if it does not exist, is not the user's own, or does not match its digest."""
    digest = path.with_suffix(".sha256")
    try:
        if not (is_private(path) and is_private(digest)):
            return None
        found = path.read_bytes()
        if hashlib.sha256(found).hexdigest() != digest.read_text().strip():
            return None
        return found
    except OSError:
        return None


def keep(path: pathlib.Path, content: bytes) -> None:
    """Store a file in the cache. Many processes may do so at once: each puts whole files into their places.

    Raises:
        Unavailable: if that fails.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            file, digest = pathlib.Path(temporary, "file"), pathlib.Path(temporary, "digest")
            file.write_bytes(content)
            digest.write_text(hashlib.sha256(content).hexdigest())
            os.chmod(file, 0o700)
            os.chmod(digest, 0o600)
            os.replace(file, path)
            os.replace(digest, path.with_suffix(".sha256"))
    except OSError as error:
        raise Unavailable(f"nothing can be stored in {path.parent}: {error}") from None


def compiled(source: str, path: pathlib.Path, command: list[str]) -> pathlib.Path:
    """Compiles `source` to `path`.

    Raises:
        Unavailable: with what the compiler said.
    """
    vectors = ["-lmvec"] if "NEEDS_LIBRARY" in source and platform.machine() == "x86_64" else []
    flags = [*FLAGS, *(() if "clang" in version(tuple(command)) else FLAGS_OF_GCC), *tuning(source)]
    include = [f"-I{jax.ffi.include_dir()}", f"-I{RUNTIME.parent}"]
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            work = pathlib.Path(temporary)
            (work / "loop.c").write_text(source)
            run = [*command, *flags, *include, "loop.c", "-o", "loop.so", *vectors, "-lm"]
            english = os.environ | {"LC_ALL": "C"}  # so that `first_error` can be found
            done = subprocess.run(run, cwd=work, env=english, capture_output=True, text=True, timeout=300)
            if done.returncode:
                said = done.stderr.strip()
                raise Unavailable(f"`{' '.join(command)}` fails: {first_error(said)}\n{said[:2000]}".strip())
            keep(path, (work / "loop.so").read_bytes())
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"the compiler cannot run: {error}") from None
    return path


def first_error(said: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = said.splitlines() or ["it does not say why"]
    return next((line for line in lines if "error: " in line), lines[-1]).strip()[:300]
