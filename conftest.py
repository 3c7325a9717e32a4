"""Settings of the tests and of the docstrings' examples: strict promotion, and eight devices on one CPU."""

import gc
import importlib.metadata
import os
import pathlib

# Set before the imports, which read these variables. JAXOPT_KERAS_TEST_DEVICE=cuda runs the tests on that platform;
# "grid" runs the kernels for GPUs on a CPU, in the place of the loops in C (tests/engine/native/cuda_grid.py).
os.environ["JAX_PLATFORMS"] = ",".join(
    dict.fromkeys([os.environ.get("JAXOPT_KERAS_TEST_DEVICE", "cpu"), "cpu"])
).removeprefix("grid,")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"
# Compilation takes most of the time, and many tests compile the same programs: workers and runs share a cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a tenth of the time goes to lines of code in programs
# XLA's older code generator for CPUs compiles in half the time. Only JAX 0.10 has it, and other versions refuse the
# unknown flag: there, and with `XLA_FLAGS= make test`, the tests use XLA's default code generator.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# A step that should be native and falls back to XLA is an error, so that tests are not skipped silently.
if "cuda" not in os.environ["JAX_PLATFORMS"]:
    os.environ.setdefault("JAXOPT_KERAS_FALLBACK", "error")

import hypothesis
import jax
import pytest

from jaxopt_keras.engine.native import Unavailable, unavailable
from jaxopt_keras.engine.native.backends import BACKENDS
from jaxopt_keras.engine.native.cuda.launch import InCuda

gc.set_threshold(50_000, 20, 50)  # traces make many small objects, few of them in cycles
jax.config.update("jax_num_cpu_devices", 8)
# The library must not rely on implicit promotion: it hides a float64 that should be float32, and a shape (n,) that
# should be (n, 1).
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A case takes as long as its compilation, hence no deadline. CI draws the same cases each time, so a failure there is
# caused by the change.
hypothesis.settings.register_profile(
    "jaxopt_keras", deadline=None, derandomize="CI" in os.environ, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("jaxopt_keras")


def pytest_configure():
    if os.environ.get("JAXOPT_KERAS_TEST_DEVICE") == "grid":
        from tests.engine.native.cuda_grid import Grid

        BACKENDS["cpu"] = InCuda(Grid())
    try:
        unavailable()
    except Unavailable as reason:
        remedy = "`JAXOPT_KERAS_FALLBACK=warn make test` leaves out the tests of native loops."
        raise pytest.UsageError(f"The native engine cannot run, and should: {reason}\n{remedy}") from None


def pytest_runtest_teardown(item, nextitem):
    """Forget the programs of a file at its end.

    A worker would end with 5 GB of them, and Python's collector, which visits every object, would take a third of the
    time.
    """
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()
        gc.freeze()


@pytest.fixture
def x64():
    """Run one test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def jax_defaults():
    """Run one test with JAX's default promotion, for code of users and of libraries that rely on it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True)
def _docstrings_run_as_a_user_would(request: pytest.FixtureRequest):
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("jax_defaults")
