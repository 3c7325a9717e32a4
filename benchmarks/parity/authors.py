"""The torch code that the authors of Muon and its kin have released, as a peer. Here it iterates in float32.

    pip install git+https://github.com/KellerJordan/Muon git+https://github.com/zichongli5/NorMuon
    pip install git+https://github.com/microsoft/dion pytorch_optimizer

AdaMuon's own release runs on GPUs only; pytorch_optimizer has a copy of it. Theirs are matrices of (out, in), ours of
(in, out).
"""

import importlib.metadata
from typing import Any

from benchmarks.parity.peer import Absent, Agreement, Dialect, load
from benchmarks.parity.torch import Torch, in_float32
from jaxopt_keras.language.rule import Rule

AUTHORS = {  # the package, the module, and the agreement
    "Muon": ("muon-optimizer", "muon", Agreement(pinned={"scale": "keller"}, variant="keras")),
    "NorMuon": ("normuon", "normuon", Agreement(variant="authors")),
    "AdaMuon": (
        "pytorch_optimizer",
        "pytorch_optimizer",
        Agreement(lambda momentum, beta_2: {"betas": (momentum, beta_2)}, {"nesterov": False}, variant="authors"),
    ),
    "Dion2": (
        "dion",
        "dion",
        # Its epsilon is the iteration's, of which our table has its own.
        Agreement(lambda: {"epsilon": 1e-6}, {"iteration": "polar_express_nanogpt", "ns_steps": 5}, variant="authors"),
    ),
}
NAMES = {"learning_rate": "lr", "beta_2": "beta2"}


class Authors(Torch):
    """Releases of the authors, on matrices whose gradients are large against epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.torch.compiler.set_stance("force_eager")  # Dion compiles with a compiler of C++
        with in_float32(self.torch):  # defaults of their functions name bfloat16
            found = [package for package, module, _ in AUTHORS.values() if _is_there(module)]
        if not found:
            raise Absent("no release of Muon's authors is installed: see benchmarks/parity/authors.py")
        self.version = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in found)

    def dialect(self, optimizer: type[Rule]) -> Dialect:
        name = optimizer.__name__
        if name not in AUTHORS:
            raise Absent(f"{name}: only Muon and its kin are compared with the authors' code")
        _, module, agreement = AUTHORS[name]
        theirs, agreement = load(module), agreement._replace(decayed=True, matrices=True)
        if name == "AdaMuon":
            return Dialect(_one_group(theirs.AdaMuon), NAMES, agreement)
        if name == "Dion2":
            return Dialect(theirs.Dion2, NAMES | {"momentum": "ef_decay"}, agreement)
        return Dialect(getattr(theirs, f"SingleDevice{name}"), NAMES, agreement)

    def turned(self, x: Any) -> Any:
        return x.T


def _is_there(module: str) -> bool:
    try:
        return bool(load(module))
    except Absent:
        return False


def _one_group(make: Any) -> Any:
    def made(params: Any, lr: float, betas: Any, weight_decay: float, ns_steps: int) -> Any:
        group = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "ns_steps": ns_steps}
        return make([{"params": params, "use_muon": True} | group])

    return made
