"""Trouble with a GPU: a sentence, and XLA runs the step; never a wrong number or a crash."""

import logging
import types

import jax
import jax.numpy as jnp
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import Unavailable, build
from jaxopt_keras.engine.native.cuda import nvrtc, probe, ptx
from tests.engine.native import test_cuda_ptx

pytestmark = test_cuda_ptx.pytestmark
described = test_cuda_ptx.described


@pytest.fixture
def gpu(monkeypatch):
    """A GPU by name, and nothing known of it yet."""
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    monkeypatch.setattr(ptx, "gpu", lambda: types.SimpleNamespace(compute_capability="9.0"))
    caches = probe.form, ptx._probed, ptx.driver
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def of_version(number, error=0):
    def get(pointer):
        pointer._obj.value = number
        return error

    return lambda name: types.SimpleNamespace(cuDriverGetVersion=get)


def missing(name):
    raise OSError("libcuda.so.1: cannot open shared object file")


DRIVERS = {
    "no driver": (missing, "the driver cannot be loaded: libcuda.so.1: cannot open shared object file"),
    "an old driver": (of_version(11080), "the driver is older than CUDA 12.1. Received: 11080"),
    "a driver with an error": (of_version(13000, error=100), "the driver does not say its version: error 100"),
}


@pytest.mark.parametrize("name", DRIVERS)
def test_drivers(name, gpu, monkeypatch):
    load, said = DRIVERS[name]
    monkeypatch.setattr(ptx.ctypes, "CDLL", load)
    monkeypatch.setattr(nvrtc, "architecture", lambda capability: "compute_90")
    monkeypatch.setattr(nvrtc, "compiled", lambda *_: "")
    monkeypatch.setattr(probe, "steps", lambda device: ptx.driver() < 0)
    assert ptx.Ptx().unavailable() == f"the probe of kernels fails: {said}"


def test_no_memory_for_the_probe(gpu, monkeypatch):
    def fail(device):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")

    monkeypatch.setattr(probe, "reads_parameters", fail)
    monkeypatch.setattr(probe, "steps", fail)
    assert ptx.Ptx().unavailable().startswith("the probe of kernels fails: RESOURCE_EXHAUSTED: Out of memory")


def test_a_gpu_that_nvrtc_does_not_know():
    with pytest.raises(Unavailable, match="has no code for devices of compute capability 1.0"):
        nvrtc.architecture("1.0")


def test_a_full_disk(described, monkeypatch, tmp_path, caplog):
    """Nothing can be kept, so nothing is launched: the reason is logged, and XLA runs the step."""

    def full(path, content):
        raise Unavailable(f"nothing can be stored in {path.parent}: no space left on device")

    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    monkeypatch.setenv("JAXOPT_KERAS_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "keep", full)
    nvrtc.compiled.cache_clear()
    build.say.cache_clear()
    with caplog.at_level(logging.WARNING, "jaxopt_keras"):
        assert ptx.TARGET not in test_cuda_ptx.lowered(jk.yogi(0.1)) and not described
    assert "no space left on device" in caplog.text
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Unavailable, match="no space left"):
        patch.setenv("JAXOPT_KERAS_FALLBACK", "error")
        test_cuda_ptx.lowered(jk.yogi(0.1), {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)})
