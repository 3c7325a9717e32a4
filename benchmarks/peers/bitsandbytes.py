"""bitsandbytes: 8-bit state in CUDA kernels."""

from benchmarks.peers.eight_bits import EightBits

NAME = "bitsandbytes"
LIBRARY = EightBits(NAME, {"AdamW": "AdamW8bit", "Adam": "Adam8bit"}, "bitsandbytes.optim")
available, implementations = LIBRARY.available, LIBRARY.implementations
