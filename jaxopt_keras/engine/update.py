"""One update of all parameters, within the pipeline: dequantize, clip, decay, rule, average, constrain, quantize."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine import rows, slot_storage
from jaxopt_keras.engine.core import Core, Layout, Leaf, Now, Slots, cast
from jaxopt_keras.engine.one_kernel import in_one_kernel
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.slot_storage import Stored
from jaxopt_keras.engine.stages import average, own_counts
from jaxopt_keras.engine.stages.accumulate import without
from jaxopt_keras.engine.stages.clip import clip
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.write_back import Move, apply_constraint, write_back
from jaxopt_keras.language.numerics import compute_dtype, real_dtype
from jaxopt_keras.language.options import Options


def update_all(
    core: Core,
    options: Options,
    watched: bool,
    layout: Layout,
    gradients: list[Any],
    stored: list[Any],
    slots: list[Slots],
    scalars: Slots,
    step: Array,
    now: Now,
    write: bool,
    join: bool = True,
) -> tuple[list[Any], list[Slots], Slots]:
    """Run one update, after the sums, the guard and the accumulation.

    Args:
        watched: a guard looks at the results.
        join: let XLA make one kernel of the results for each parameter (`one_kernel.py`), unless a guard does so later.
    """
    averages = [s.get(average.AVERAGE) for s in slots]
    counts = [s.get(OWN_COUNT) for s in slots]
    slots, now = [without(s, average.AVERAGE, OWN_COUNT) for s in slots], own_counts.started(now, counts)

    # The rule sees the touched rows of a lazy gradient as if they were the whole array.
    touched = [g if isinstance(g, Rows) and not core.takes_rows else None for g in gradients]
    grads = clip([g.values if isinstance(g, Rows) else g for g in gradients], now.hyper)
    if core.takes_rows:
        grads = [r._replace(values=g) if isinstance(r, Rows) else g for g, r in zip(grads, gradients, strict=True)]
    old = [Stored(*rows.gather(x, r)) for x, r in zip(zip(stored, slots, strict=True), touched, strict=True)]
    wide = [dequantized(options, x, g) for x, g in zip(old, grads, strict=True)]
    params, before = [p for p, _ in wide], [s for _, s in wide]
    numbers = now._replace(second=None)
    clocks = {d: cast(numbers, d) for d in {real_dtype(jax.tree.leaves(g)[0].dtype) for g in grads if g is not None}}
    decays = [_decay(core, *x, clocks) for x in zip(layout.leaves, grads, params, strict=True)]
    decayed = [p if d is None else p - d for p, d in zip(params, decays, strict=True)]
    deltas, after, scalars = core.update(layout, grads, decayed, before, scalars, now)
    deltas = [x if d is None else x - d for x, d in zip(deltas, decays, strict=True)]
    new = [d if d is None or p is None else p + d for p, d in zip(params, deltas, strict=True)]
    seeds = slot_storage.draw_seeds(options, layout.leaves, slots, step)
    for i, leaf in enumerate(layout.leaves):
        if grads[i] is not None:
            quantized = slot_storage.quantize_slots(leaf, after[i], old[i].slots, seeds, watched)
            written = {n: rows.scatter(slots[i][n], x, touched[i]) for n, x in quantized.items()}
            slots[i] = slots[i] | written  # keeps slots that are not the rule's own
    moves = [Move(*x) for x in zip(new, deltas, old, touched, strict=True)]

    if options.use_ema or options.constraints:
        wholes = [Stored(p, s) for p, s in zip(stored, slots, strict=True)]
        current = [dequantized(options, k)[0] for k in wholes]
        new = [p if x.new is None else rows.scatter(p, x.new, x.touched) for p, x in zip(current, moves, strict=True)]
        if options.use_ema:
            frequency = options.ema_overwrite_frequency
            new, averages = average.stage(new, averages, now.hyper["ema_momentum"], frequency, step)
        new = [apply_constraint(options, *x) for x in zip(layout.leaves, new, grads, strict=True)]
        moves = [Move(q, None, k, None) for q, k in zip(new, wholes, strict=True)]

    everything = zip(layout.leaves, gradients, stored, slots, moves, strict=True)
    ends = [write_back(options, *x, seeds, write) for x in everything]
    out = [p for p, _ in ends]
    slots = [s | own_counts.counted(c, g) for (_, s), c, g in zip(ends, counts, gradients, strict=True)]
    if options.use_ema:
        slots = [s | {average.AVERAGE: a} for s, a in zip(slots, averages, strict=True)]
    if join:
        out = in_one_kernel(core, layout, gradients, out, slots)
    return out, slots, scalars


def dequantized(options: Options, stored: Stored, g: Any = None) -> tuple[Any, Slots]:
    """Convert a parameter and its slots to the dtype of the arithmetic, that of `g` if the parameter is None."""
    like = g if stored.p is None else stored.p
    dtype = jnp.result_type(float) if like is None else compute_dtype(like.dtype)
    return slot_storage.dequantize(options, stored, dtype)


def _decay(core: Core, leaf: Leaf, g: Any, p: Any, clocks: dict[Any, Now]) -> Any:
    """Return the amount that decoupled weight decay subtracts from `p` before the rule, or None."""
    if g is None or not leaf.decays:
        return None
    now = clocks[real_dtype(jax.tree.leaves(g)[0].dtype)]
    rate = core.decoupled(leaf, p, now)
    return None if rate is None else p * (now.lr * rate)
