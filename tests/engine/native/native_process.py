"""One of the processes of `test_native_processes.py`: three steps, and a line of JSON about them.

python -m tests.engine.native.native_process alone|spawn|fork
"""

import hashlib
import json
import multiprocessing
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk

NATIVE = 'custom_call_target="jaxopt_keras_'


def stepped() -> dict[str, Any]:
    """Return the result of three steps, the number of native loops, and the programs that XLA's cache lacked."""
    found = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

    def listen(event: str, **_: Any) -> None:
        if event in found:
            found[event] += 1

    jax.monitoring.register_event_listener(listen)
    kernel = jk.adamw(0.1, global_clipnorm=1.0)
    params = {"w": jnp.sin(jnp.arange(300.0)).reshape(3, 100), "b": jnp.ones(3)}
    state = kernel.init(params)
    for _ in range(3):
        params, state = kernel.step(params, state, jax.tree.map(jnp.cos, params))
    arrays = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves((params, state)))
    hits, misses = found.values()
    program = kernel.compiled.step_donating.lower(params, state, params, kernel.hyper()).compile().as_text() or ""
    return {
        "bits": hashlib.sha256(arrays).hexdigest(),
        "loops": program.count(NATIVE),
        "hits": hits,
        "misses": misses,
    }


def main(how: str) -> None:
    if how == "alone":
        results = [stepped()]
    else:  # a pool, before this process has made an array
        with multiprocessing.get_context(how).Pool(1) as pool:
            results = [pool.apply(stepped), stepped()]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
