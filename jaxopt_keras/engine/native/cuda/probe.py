"""Tries kernels on the GPU of this process, once: are all results right?

First a kernel that uses no pointer but the first one: it stores its pointers as numbers, which must be the addresses of
its arrays. That shows whether a kernel may read its parameters by number (the form "table"). Then a step of arrays of
several sizes, with totals, blocks and a count, through the whole engine.
"""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.native.build import Unavailable
from jaxopt_keras.engine.native.cuda import nvrtc, ptx
from jaxopt_keras.engine.native.cuda.kernel import NAME, POINTERS, WORDS, Layout
from jaxopt_keras.engine.native.cuda.launch import Kernel

READS = f"""
__constant__ unsigned TABLE[{WORDS}];
struct Pointers {{ char* a[{POINTERS}]; }};
extern "C" __global__ void {NAME}(const __grid_constant__ Pointers P) {{
  const unsigned k = threadIdx.x;
  if (k < TABLE[0]) ((unsigned long long*)P.a[0])[k] = (unsigned long long)P.a[TABLE[1 + k]];
}}
"""
SIZES = (5, 2048, 40_000)
ROWS = (300, 64)


@functools.cache
def form() -> str:
    """The form of kernels to use.

    Raises:
        Unavailable: if no form gives right results.
    """
    found: list[str | Unavailable] = []
    # In a thread of its own, since this may be called while a program is traced.
    thread = threading.Thread(target=lambda: found.append(_searched()))
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, Unavailable):
        raise result
    return result


def _searched() -> str | Unavailable:
    reason = ""
    for form, trials in (("table", (reads_parameters, steps)), ("switch", (steps,))):
        ptx.TRIED.set(form)
        try:
            device = ptx.gpu()
            if all(trial(device) for trial in trials):
                return form
            reason = reason or "a kernel gives wrong results"
        except Exception as error:  # of any kind: XLA, the driver and NVRTC have many
            reason = reason or str(error)
    return Unavailable(f"the probe of kernels fails: {reason}")


def reads_parameters(device: Any) -> bool:
    """Whether a kernel that reads its parameters by number finds the addresses of its arrays."""
    results = [jax.ShapeDtypeStruct((8,), jnp.uint32), jax.ShapeDtypeStruct((3,), jnp.float32)]
    made = Kernel(Layout(()), np.array([4, 0, 1, 2, 3], np.uint32), (), 4, 1)
    text = nvrtc.compiled(READS, nvrtc.architecture(device.compute_capability))
    text = ptx.fitted(text, made, "table", ptx.driver())
    run = jax.jit(lambda *arrays: ptx.call(text, results, {0: 0}, [*arrays], 1)[0])
    arrays = [jax.device_put(np.zeros(n, dtype), device) for n, dtype in ((8, np.uint32), (3, np.float32))]
    found = np.asarray(run(*arrays)).view(np.uint64)
    return bool(found[0] == found[2] and found[1] == arrays[1].unsafe_buffer_pointer() and found.all())


def steps(device: Any) -> bool:
    """Whether a step that uses the whole engine has right results."""
    from jaxopt_keras.engine.native.lower import native

    rng = np.random.default_rng(0)
    arrays = [rng.integers(-8, 8, size).astype(np.float32) for size in (*SIZES, ROWS)]
    put = lambda x: jax.device_put(x, device)
    found, count = jax.jit(native(step), donate_argnums=(0, 1))([*map(put, arrays)], put(np.int32(4)), np.float32(0.5))
    expected, _ = step([x.astype(np.float64) for x in arrays], 4, 0.5)
    return int(count) == 5 and all(
        np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True)
    )


def step(arrays: list[Any], count: Any, rate: Any) -> tuple[list[Any], Any]:
    """Arrays divided by their common norm, the last one also by the greatest number of each row; and a count."""
    is_numpy = isinstance(arrays[0], np.ndarray)
    xp: Any = np if is_numpy else jnp
    norm = xp.sqrt(sum(xp.sum(x * x) for x in arrays))
    *plain, last = [x - rate * x / norm for x in arrays]
    return [*plain, last / xp.max(xp.abs(last), axis=-1, keepdims=True)], count + 1
