"""How the tests and the docstrings' examples run: strictly, on a CPU that pretends to be eight devices."""

import importlib.metadata
import os
import pathlib

# Read when the libraries are imported, so set first. JAXOPT_KERAS_TEST_DEVICE=cuda runs the suite on that platform.
os.environ["JAX_PLATFORMS"] = ",".join(dict.fromkeys([os.environ.get("JAXOPT_KERAS_TEST_DEVICE", "cpu"), "cpu"]))
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"
# Compilation takes most of the time, and many tests compile the same: workers share what is compiled, and so do runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# XLA's older way to code for a CPU compiles in half the time. Only JAX 0.10 has it, and others stop at a flag that they
# do not know: with them, as with `XLA_FLAGS= make test`, the suite runs on what users have.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Where a step should be native, XLA in its place is a fault, and not a reason to leave tests out.
if "cuda" not in os.environ["JAX_PLATFORMS"]:
    os.environ.setdefault("JAXOPT_KERAS_FALLBACK", "error")

import hypothesis
import jax
import pytest

from jaxopt_keras.engine.native import Unavailable, unavailable

jax.config.update("jax_num_cpu_devices", 8)
# The library must not lean on implicit promotion: it hides a float64 that should be float32, and a (n,) that should be
# an (n, 1).
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A case takes as long as its compilation, hence no deadline. CI draws the same cases each time: what fails there is the
# change's doing.
hypothesis.settings.register_profile(
    "jaxopt_keras", deadline=None, derandomize="CI" in os.environ, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("jaxopt_keras")


def pytest_configure():
    try:
        unavailable()
    except Unavailable as reason:
        remedy = "`JAXOPT_KERAS_FALLBACK=warn make test` leaves out the tests of native loops."
        raise pytest.UsageError(f"The native engine cannot run, and should: {reason}\n{remedy}") from None


@pytest.fixture
def x64():
    """Run one test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def jax_defaults():
    """Run one test with JAX's own promotion rules: for a user's code, and for libraries that rely on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True)
def _docstrings_run_as_a_user_would(request: pytest.FixtureRequest):
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("jax_defaults")
