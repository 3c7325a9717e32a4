"""The task of all programs: a regression whose features have different scales."""

import numpy as np

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype(np.float32) * np.linspace(0.5, 2.0, 8, dtype=np.float32)
Y = np.tanh(X @ RNG.normal(size=(8, 1)).astype(np.float32))
FIRST = RNG.normal(size=(8, 16)).astype(np.float32) / 3
SECOND = RNG.normal(size=(16, 1)).astype(np.float32) / 4
STEPS = 40
