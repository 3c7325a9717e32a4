"""Benchmarks: the cost of a step of each optimizer, compared with other libraries and with the machine's limit."""

import os

from command import end_in_one_line

end_in_one_line()
os.environ.setdefault("KERAS_BACKEND", "jax")
# Peak memory is measured in a separate process, which needs device memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
