"""The contents of the golden files, and their writer: one file of every kind of state, for version 1 of the layout.

    python -m tests.checkpoint.golden.cases FOLDER

The files here were written by the code of the commit deab66d, the last whose kernels kept their hyperparameters in
the state, so that they have `hyper/` entries. A new version of the layout needs new files; these stay.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

GOLDEN = Path(__file__).parent


def params():
    return {
        "dense": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0], [0.25, -0.125]]), "bias": jnp.asarray([0.5, -0.5])},
        "scale": jnp.asarray(2.0),
    }


def wide():
    """Large enough for codes."""
    return {"w": jnp.asarray(np.linspace(-1, 1, 4096, dtype=np.float32).reshape(16, 256)), "b": jnp.ones(3)}


def low():
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())


def scaled_adamw(**o):
    return jk.loss_scaled(jk.adamw(0.125, beta_1=0.5, **o), 8.0)


def groups(**o):
    parts = {"bias": jk.sgd(0.5, momentum=0.75, **o), "scale": jk.frozen()}
    return jk.partition(parts, default=jk.adamw(0.125, beta_1=0.5, **o))


def windows_of_groups(**o):
    few = jk.adam(0.25, gradient_accumulation_steps=2, skip_nonfinite=True, **o)
    return jk.loss_scaled(jk.partition({"bias": few}, default=jk.nadam(0.125, **o)), 4.0)


KERNELS = {  # name: the kernel, with more options; its parameters
    "plain": (lambda **o: jk.adamw(0.125, beta_1=0.5, **o), params),
    "bare": (lambda **o: jk.adamw(0.125, beta_1=0.5, **o), lambda: jnp.asarray([1.0, -2.0])),
    "partition": (groups, params),
    "loss_scaled": (scaled_adamw, params),
    "loss_scaled_partition": (windows_of_groups, params),
    "packed": (lambda **o: jk.adamw(0.125, beta_1=0.5, use_ema=True, **o), lambda: jk.pack(params())),
    "packed_partition": (groups, lambda: jk.pack(params())),
    "flat_state": (lambda **o: jk.adamw(0.125, flat_state=True, **o), params),
    "int8": (lambda **o: jk.adamw(0.125, state_dtype="int8", **o), wide),
    "window": (lambda **o: jk.adam(0.125, gradient_accumulation_steps=2, **o), params),
    "masters": (lambda **o: jk.adamw(0.125, master_weights="bf16+16", state_dtype="bfloat16", **o), low),
    "adafactor": (lambda **o: jk.adafactor(0.125, min_dim_size_to_factor=2, **o), params),
    "muon": (lambda **o: jk.muon(0.125, **o), params),
    "guard": (lambda **o: jk.nadam(0.125, skip_nonfinite=True, skip_spikes=50.0, **o), params),
    "within_optax": (lambda **o: jk.Kernel.from_optax(optax.chain(optax.clip(1.0), jk.adam(0.125, **o))), params),
}


def parts():
    return jk.OptimizerMap(jk.AdamW(0.125), {"dense/.*": jk.SGD(0.5, momentum=0.75, gradient_accumulation_steps=2)})


OPTIMIZERS = {
    "stateful_adamw": lambda: jk.AdamW(0.125, use_ema=True),
    "stateful_packed": lambda: jk.AdamW(0.125),
    "multi": lambda: jk.MultiOptimizer(parts()),
    "loss_scale": lambda: jk.LossScaleOptimizer(jk.Adam(0.125, skip_spikes=50.0), 8.0),
    "loss_scale_multi": lambda: jk.LossScaleOptimizer(jk.MultiOptimizer(parts()), 8.0),
}


def path_of(name):
    return GOLDEN / f"{name}_v1.safetensors"


def gradients(like, i):
    """Of step i. Of the second step they are infinite in one place, which guards skip."""
    grads = jax.tree.map(lambda x: x * (i + 1) / 4, like)
    return jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.inf), grads) if i == 1 else grads


def trained(name):
    """The parameters and the state after three calls: in the middle of a window of two."""
    make, start = KERNELS[name]
    kernel, p = make(), start()
    state = kernel.init(p)
    guarded = name in ("loss_scaled", "loss_scaled_partition", "guard")
    for i in (0, 1, 2) if guarded else (0, 2, 3):
        p, state = kernel.step(p, state, gradients(p, i), donate=False)
    return p, state


def stateful(name):
    """An optimizer of that kind with variables, built, and the variables."""
    arrays = {"scale": (), "dense/kernel": (3, 2), "dense/bias": (2,)}
    variables = [jk.Variable(jnp.full(shape, i + 0.5), name=path) for i, (path, shape) in enumerate(arrays.items())]
    optimizer = OPTIMIZERS[name]()
    given = jk.pack_variables(variables) if "packed" in name else variables
    optimizer.build(given)
    return optimizer, given


def trained_stateful(name):
    optimizer, variables = stateful(name)
    for i in (0, 1, 2) if "loss_scale" in name else (0, 2, 3):
        optimizer.apply_gradients([(gradients(v.value, i), v) for v in variables])
    return optimizer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in KERNELS:
        checkpoint.save(folder / path_of(name).name, trained(name)[1])
    for name in OPTIMIZERS:
        checkpoint.save(folder / path_of(name).name, trained_stateful(name))
