"""How far this library is from Keras, optax, torch and float64: one command, one table.

    python -m jaxopt_keras.parity [--optimizer NAME ...] [--peer NAME ...] [--steps 60] [--seeds 5]

Every optimizer runs in float32 beside its counterpart: the same start, the same gradients, the same random settings
(hyperparameters, weight decay, a clip, an average that overwrites, a loss scale, a schedule, accumulation). An entry of
the table is the greatest difference of a parameter at any step, divided by the greatest distance that this parameter
travels from its start; the worst parameter of the worst seed counts.

The gradients are given, not those of a loss at the parameters: no problem then amplifies what the two sides round
differently, and an entry is about the optimizer alone. Each array's gradients have a size of their own, from 1e-6 to
1e2, so that epsilons matter in some and not in others. Each array starts at a tenth to once the distance that it will
travel: a parameter of 1 that moves by 1e-6 would show nothing but its own rounding.

Decays are drawn up to their defaults. The peers compute 1 - beta^t from a float32 beta, which is wrong by up to
6e-8 / (1 - beta): 6e-5 for 0.999, and more than any bar beyond it. Ours go through the complement (`numerics`).

Not compared, because the peers deliberately mean something else:

- accumulation together with a schedule or an average. Keras moves both on every micro-step, this library once per
  update; accumulation alone is compared;
- optax's schedule-free AdamW under a schedule: it weighs by the rate of the next step;
- torch's AMSGrad (its maximum is over another value than Keras's and optax's), its weight decay where it is coupled
  and ours is not, its clipping by norm (it adds 1e-6 to the norm), its Muon (it iterates in bfloat16).
"""
