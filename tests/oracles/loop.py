"""Common parts of all optimizers: the steps from the gradient to the parameter.

One call of `step` is one micro-step. In order: divide by the loss scale; add to the sum; on every k-th call, with the
mean of the k gradients: clip, decay and update (`oracle.update`), average, overwrite by the average, constrain.

Decay, clipping, the learning rate, averages and constraints move once per real update, not once per micro-step (Keras
moves the schedule, the averages and the constraints on every micro-step). A gradient `None` counts as zero in the
mean; a parameter that had only `None` is left alone, but is still averaged.
"""

import statistics
import zlib

import numpy as np


def to_float64(x):
    return np.array(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def probe(path, t, shape, seed=0):
    """The normal numbers that the update `t` draws for the array at `path`: by a hash of both."""
    import jax

    mask, x = 2**32 - 1, zlib.crc32(f"{seed}/{path}/random".encode()) + t - 1
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finalizer
        x = ((x & mask) ^ ((x & mask) >> shift)) * factor
    bits = np.asarray(jax.random.bits(jax.random.key(np.uint32(x & mask)), shape, np.uint32)) >> 9
    return np.vectorize(statistics.NormalDist().inv_cdf, otypes=[float])((bits + 0.5) / 2**23)


def squared_norm(x):
    return np.sum(np.abs(x) ** 2)


class Loop:
    """One optimizer over named parameters. `params`, `slots` and `averages` are dicts by name, `updates` a count.

    oracle: a module with `init` and `update`.
    learning_rate: a number, or a function of the number of updates done so far.
    weight_decay: handed to the oracle as `wd`; names in `exclude` get None (also as Muon's `adam_weight_decay`).
    clipnorm, global_clipnorm, clipvalue: at most one.
    constraints: dict of functions, by name.
    hyper: the optimizer's own arguments.
    """

    def __init__(
        self,
        oracle,
        params,
        learning_rate,
        *,
        weight_decay=None,
        exclude=(),
        clipnorm=None,
        global_clipnorm=None,
        clipvalue=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        constraints=None,
        variant="keras",
        **hyper,
    ):
        if sum(bool(clip) for clip in (clipnorm, global_clipnorm, clipvalue)) > 1:
            raise ValueError("At most one of clipnorm, global_clipnorm and clipvalue.")
        self.oracle, self.learning_rate = oracle, learning_rate
        self.weight_decay, self.exclude = weight_decay, frozenset(exclude)
        self.clipnorm, self.global_clipnorm, self.clipvalue = clipnorm, global_clipnorm, clipvalue
        self.use_ema, self.ema_momentum = use_ema, ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.accumulation = gradient_accumulation_steps or 1
        self.constraints = constraints or {}
        self.variant, self.hyper = variant, hyper
        self.params = {name: to_float64(p) for name, p in params.items()}
        self.slots = {name: oracle.init(p, variant=variant, path=name, **hyper) for name, p in self.params.items()}
        self.common = oracle.start(variant=variant, **hyper) if hasattr(oracle, "start") else None
        self.averages = {name: np.zeros_like(p) for name, p in self.params.items()} if use_ema else {}
        self.updates = 0
        self.micro_steps = 0
        self.sums = {}

    def run(self, grads):
        """The parameters after each (micro-)step."""
        return [self.step(g) for g in grads]

    def step(self, grads):
        with np.errstate(all="ignore"):
            for name, g in grads.items():
                if g is not None:
                    g = to_float64(g)
                    if self.loss_scale_factor is not None:
                        g = g / self.loss_scale_factor
                    self.sums[name] = self.sums.get(name, 0.0) + g
            self.micro_steps += 1
            if self.micro_steps % self.accumulation == 0:
                mean = {name: total / self.accumulation for name, total in self.sums.items()}
                self.sums = {}
                self.apply(mean)
        return dict(self.params)

    def apply(self, grads):
        """One real update."""
        t = self.updates + 1
        lr = self.learning_rate(self.updates) if callable(self.learning_rate) else self.learning_rate
        grads = self.clip(grads)
        if self.common is not None:
            arrays = grads, self.params, self.slots
            decays = {name: None if name in self.exclude else self.weight_decay for name in grads}
            more = {"variant": self.variant, "weight_decays": decays}
            self.common = self.oracle.advance(self.common, *arrays, t, lr, **more, **self.hyper)
        for name, g in grads.items():
            wd, hyper = self.weight_decay, self.hyper | {"common": self.common}
            if name in self.exclude:
                wd, hyper = None, {**hyper, "adam_weight_decay": None}
            self.params[name], self.slots[name] = self.oracle.update(
                g, self.params[name], self.slots[name], t, lr, wd=wd, variant=self.variant, path=name, **hyper
            )
        if self.use_ema:
            keep = 0.0 if self.updates == 0 else self.ema_momentum
            for name, p in self.params.items():
                self.averages[name] = keep * self.averages[name] + (1 - keep) * p
            if self.ema_overwrite_frequency and t % self.ema_overwrite_frequency == 0:
                self.params = dict(self.averages)
        for name in grads:
            if name in self.constraints:
                self.params[name] = self.constraints[name](self.params[name])
        self.updates = t

    def clip(self, grads):
        if self.clipnorm and self.clipnorm > 0:
            c = self.clipnorm
            return {name: g * c / np.maximum(np.sqrt(squared_norm(g)), c) for name, g in grads.items()}
        if self.global_clipnorm and self.global_clipnorm > 0:
            c = self.global_clipnorm
            norm = np.sqrt(sum(squared_norm(g) for g in grads.values()))
            # Keras adds norm - norm: 0, but NaN if the norm is not finite.
            scale = c * np.minimum(1 / norm, 1 / c) + (norm - norm)
            return {name: g * scale for name, g in grads.items()}
        if self.clipvalue and self.clipvalue > 0:
            return {name: np.clip(g, -self.clipvalue, self.clipvalue) for name, g in grads.items()}
        return grads


def run(oracle, params, grads, learning_rate, **options):
    """The parameters after each (micro-)step of `Loop(oracle, params, learning_rate, **options)`."""
    return Loop(oracle, params, learning_rate, **options).run(grads)
