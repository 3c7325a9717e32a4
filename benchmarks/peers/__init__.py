"""The other libraries. Each module has `NAME`, `available(platform)` (None, or why not) and `implementations(wish)`."""

from types import ModuleType

from benchmarks.peers import bitsandbytes, flashoptim, keras, optax, torch, torchao

PEERS: dict[str, ModuleType] = {peer.NAME: peer for peer in (optax, keras, torch, flashoptim, bitsandbytes, torchao)}
