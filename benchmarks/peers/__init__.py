"""Other libraries. Each module has `NAME`, `implementations(wish)` and `available(platform)` (None, or a reason)."""

from types import ModuleType

from benchmarks.peers import bitsandbytes, flashoptim, keras, optax, torch, torchao

PEERS: dict[str, ModuleType] = {peer.NAME: peer for peer in (optax, keras, torch, flashoptim, bitsandbytes, torchao)}
