"""Measures the differences from Keras, optax, torch, Muon's authors and float64: one command, one table.

    python -m benchmarks.parity [--optimizer NAME ...] [--peer NAME ...] [--steps 60] [--seeds 5]

Every optimizer and its counterpart run in float32 with the same initial parameters, the same gradients, and the same
random settings (hyperparameters, weight decay, a clip, an average that overwrites, a loss scale, a schedule,
accumulation). An entry of the table is the greatest difference of a parameter at any step, divided by the greatest
distance of this parameter from its start, for the worst parameter of the worst seed.

The gradients are random numbers, not those of a loss: no problem amplifies differences in rounding, so that an entry
depends on the optimizer alone. Each array's gradients have a size of their own, from 1e-6 to 1e2, so that epsilon
matters for some arrays only. Each array starts at 0.1 to 1 times the distance that it will travel: a parameter of 1
that moves by 1e-6 would show only its own rounding.

Decays are drawn up to their defaults. The peers compute 1 - beta^t from a float32 beta, with a relative error of up to
6e-8 / (1 - beta): 6e-5 for 0.999, above every bar. This library computes it from the complement (`numerics`).

Not compared, because the peers deliberately differ:

- accumulation together with a schedule or an average. Keras advances both at every micro-step, this library once per
  update; accumulation alone is compared;
- optax's schedule-free AdamW under a schedule: it weights by the rate of the next step;
- torch's AMSGrad (its maximum is over another value than Keras's and optax's), its coupled weight decay where ours is
  decoupled, its clipping by norm (it adds 1e-6 to the norm).

torch's Muon, and the releases of Muon's authors (`benchmarks/parity/authors.py`), iterate in bfloat16. Here they are
made to do so in float32, on matrices whose gradients are large against their epsilons.
"""
