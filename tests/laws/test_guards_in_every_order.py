"""A bad call leaves no trace, whatever the kernel is wrapped in and in which order.

Guards, accumulation, clips, averages, master weights, groups, loss scaling and ZeRO-1 each hold back or replace a part
of the state. Any two of them that disagree about whether a call counted would leave the training in a state that no
training without the bad call gets to.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.programs.loss_scaled import GOOD, SCALE
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.pure import sharding
from tests.laws.cases import assert_same_bits, gradients, parameters, run

OPTIONS = {
    "skip_nonfinite": True,
    "skip_spikes": 1e6,
    "gradient_accumulation_steps": 2,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_overwrite_frequency": 2,
}
SHAPES = {"w": (16, 8), "b": (8,)}
BASES = {
    master: lambda master=master: jk.adamw(0.0625, master_weights=master, **OPTIONS)
    for master in ("float32", "bf16+16", "bf16+8")
} | {"stochastic": lambda: jk.adamw(0.0625, rounding="stochastic", **OPTIONS)}


def groups(kernel):
    return jk.partition({"b": jk.sgd(0.5, momentum=0.5, clipnorm=0.5, master_weights="float32")}, default=kernel)


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


WRAPS = {
    "groups": groups,
    "scale": jk.loss_scaled,
    "zero1": lambda kernel: sharding.zero1(kernel, mesh()),
}
# Every pair in every order in which it may come, alone or within three.
ORDERS = [(), ("scale", "zero1"), ("zero1", "scale"), ("groups", "scale", "zero1"), ("groups", "zero1", "scale")]
CASES = [(base, order) for base in BASES for order in (ORDERS if base == "bf16+8" else [("groups", "scale")])]


@pytest.mark.parametrize(("base", "order"), CASES, ids=lambda x: x if isinstance(x, str) else ">".join(x) or "bare")
def test_a_bad_call_leaves_no_trace(base, order):
    kernel = BASES[base]()
    for name in order:
        kernel = WRAPS[name](kernel)
    params, grads = parameters(SHAPES, jnp.bfloat16), gradients(6, SHAPES, jnp.bfloat16)
    if "zero1" in order:
        params = jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))
    good = run(kernel, params, [scaled(g, order, 0) for g in grads])
    assert not np.array_equal(good[0]["w"], params["w"])
    spoilt = []
    for i, g in enumerate(grads):
        bad = g | {"wb"[i % 2]: g["wb"[i % 2]].at[..., -1].set(jnp.nan if i % 3 else jnp.inf)}
        spoilt += [bad, scaled(g, order, i + 1)]
    params, state = run(kernel, params, spoilt)
    assert state.scalars[SKIPPED] == len(grads)
    assert_same_bits((params, apart(state)), (good[0], apart(good[1])))


def scaled(g, order, halvings):
    """`g` as that of a loss that was scaled; a power of two changes no digit."""
    scale = 2.0 ** (15 - halvings) if "scale" in order else 1.0
    return jax.tree.map(lambda x: x * scale, g)


def apart(state):
    """All but what counts bad calls."""
    return state._replace(scalars={n: x for n, x in state.scalars.items() if n not in (SKIPPED, SCALE, GOOD)})
