"""FlashOptim: 8-bit state in Triton kernels, one launch for each array."""

from benchmarks.peers.eight_bits import EightBits

NAME = "flashoptim"
CLASSES = {"AdamW": "FlashAdamW", "Adam": "FlashAdam", "SGD": "FlashSGDW", "Lion": "FlashLion"}
# Without master weights, as ours in the comparison.
LIBRARY = EightBits(NAME, CLASSES, "flashoptim", {"master_weight_bits": None})
available, implementations = LIBRARY.available, LIBRARY.implementations
