"""Benchmarks: what a step of each optimizer costs, beside its peers and beside what the machine can do at all."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# Peak memory is measured in a process of its own, which needs some of the device too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
