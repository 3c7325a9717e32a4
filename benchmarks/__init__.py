"""Benchmarks: the cost of a step of each optimizer, compared with other libraries and with the machine's limit."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# Peak memory is measured in a separate process, which needs device memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
