"""The torch code that authors have released, as a peer. Here it computes in float32.

    pip install git+https://github.com/KellerJordan/Muon git+https://github.com/zichongli5/NorMuon
    pip install git+https://github.com/microsoft/dion pytorch_optimizer adam-mini kron-torch
    pip install galore-torch apollo-torch transformers bitsandbytes prodigyopt dadaptation schedulefree

AdaMuon's own release runs on GPUs only, and SM3's is for TensorFlow 1; pytorch_optimizer has copies of them, and of
others that are no packages. Theirs are matrices of (out, in), ours of (in, out).
"""

import contextlib
import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.parity.peer import Absent, Agreement, Dialect, load
from benchmarks.parity.torch import MATRICES, Torch, in_float32
from jaxopt_keras.language.rule import Rule
from tests.oracles.loop import probe


class Release(NamedTuple):
    """The release of an optimizer's authors, or a copy of it."""

    package: str
    make: Callable[[Any], Any]  # its optimizer, from its module
    agreement: Agreement = Agreement(variant="authors")
    names: Mapping[str, str] = {}  # ours -> theirs, where they differ

    @property
    def module(self) -> str:
        return {"muon-optimizer": "muon"}.get(self.package, self.package.replace("-", "_"))


def _of_betas(**pinned: Any) -> Agreement:
    return Agreement(lambda beta_1, beta_2: {"betas": (beta_1, beta_2)}, pinned, variant="authors")


THREE_BETAS = Agreement(lambda beta_1, beta_2, beta_3: {"betas": (beta_1, beta_2, beta_3)}, variant="authors")
# The first projection stays: at the next one the signs of singular vectors count, which theirs has from LAPACK.
LOW_RANK = {"rank": 2, "update_proj_gap": 1000, "proj_type": "std"}
AUTHORS = {
    "Muon": Release(
        "muon-optimizer", lambda m: m.SingleDeviceMuon, Agreement(pinned={"scale": "keller"}, variant="keras")
    ),
    "NorMuon": Release("normuon", lambda m: m.SingleDeviceNorMuon),
    "AdaMuon": Release(
        "pytorch_optimizer",
        lambda m: _one_group(m.AdaMuon),
        Agreement(lambda momentum, beta_2: {"betas": (momentum, beta_2)}, {"nesterov": False}, variant="authors"),
    ),
    # Its epsilon is the iteration's, of which our table has its own.
    "Dion2": Release(
        "dion",
        lambda m: m.Dion2,
        Agreement(lambda: {"epsilon": 1e-6}, {"iteration": "polar_express_nanogpt", "ns_steps": 5}, variant="authors"),
        {"momentum": "ef_decay"},
    ),
    # Their `Dion` turns matrices with fewer rows than columns first; `DionSimple`, as in the paper and here, does not.
    "Dion": Release(
        "dion",
        lambda m: _with_bases(m.DionSimple),
        Agreement(pinned={"rank_fraction": 1.0}, variant="authors"),
        {"momentum": "mu"},
    ),
    "SM3": Release("pytorch_optimizer", lambda m: m.SM3, Agreement(pinned={"epsilon": 1e-30}, variant="authors")),
    "Kron": Release("kron-torch", lambda m: _with_probes(m.kron), names={"beta_1": "b1"}),
    "GaLore": Release(
        "galore-torch",
        lambda m: _in_group(m.GaLoreAdamW, "rank update_proj_gap scale proj_type"),
        _of_betas(**LOW_RANK),
    ),
    "APOLLO": Release("apollo-torch", lambda m: _with_directions(m), _of_betas(**LOW_RANK)),
    "Prodigy": Release("prodigyopt", lambda m: _quiet(m.Prodigy), _of_betas(), {"beta_3": "beta3"}),
    "DAdaptAdamW": Release("dadaptation", lambda m: _quiet(m.DAdaptAdam, decouple=True), _of_betas()),
    "ScheduleFreeAdamW": Release(
        "schedulefree", lambda m: _training(m.AdamWScheduleFree), _of_betas(warmup_steps=0)._replace(variant="optax")
    ),
    "LaProp": Release("pytorch_optimizer", lambda m: m.LaProp, _of_betas()),
    "Grams": Release("pytorch_optimizer", lambda m: m.Grams, _of_betas()),
    "StableAdamW": Release("pytorch_optimizer", lambda m: m.StableAdamW, _of_betas()),
    "MARSAdamW": Release("pytorch_optimizer", lambda m: m.MARS, _of_betas()),
    # The first gradient leaves open what are the eigenvectors of the rest of a longer axis.
    "SOAP": Release("pytorch_optimizer", lambda m: m.SOAP, _of_betas()._replace(shapes={"square": (4, 4)})),
    "AdEMAMix": Release("pytorch_optimizer", lambda m: _decoupled(m.AdEMAMix), THREE_BETAS),
    "Adan": Release("pytorch_optimizer", lambda m: m.Adan, THREE_BETAS),
    "AdaBelief": Release("pytorch_optimizer", lambda m: m.AdaBelief, _of_betas()),
    "LARS": Release(
        "pytorch_optimizer", lambda m: m.LARS, Agreement(pinned={"trust_coefficient": 0.5}, variant="authors")
    ),
    "MADGRAD": Release("pytorch_optimizer", lambda m: m.MADGRAD),
    "NovoGrad": Release("pytorch_optimizer", lambda m: m.NovoGrad, _of_betas()),
    "Yogi": Release("pytorch_optimizer", lambda m: m.Yogi, _of_betas()),
    "AdamMini": Release("adam-mini", lambda m: _with_names(m.Adam_mini), _of_betas()),
}
WITHOUT_DECAY = {"SM3", "LaProp"}
NAMES = {"learning_rate": "lr", "beta_2": "beta2", "epsilon": "eps"}


class Authors(Torch):
    """Releases of the authors, on matrices whose gradients are large against epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.torch.compiler.set_stance("force_eager")  # Dion compiles with a compiler of C++
        with in_float32(self.torch):  # defaults of their functions name bfloat16
            found = dict.fromkeys(each.package for each in AUTHORS.values() if _is_there(each.module))
        if not found:
            raise Absent("no release of authors is installed: see benchmarks/parity/authors.py")
        self.version = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in found)

    def dialect(self, optimizer: type[Rule]) -> Dialect:
        if (name := optimizer.__name__) not in AUTHORS:
            raise Absent("no release to run, or it is that of the other columns")
        release = AUTHORS[name]
        agreement = release.agreement._replace(decayed=name not in WITHOUT_DECAY, matrices=True)
        return Dialect(release.make(load(release.module)), {**NAMES, **release.names}, agreement)

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


def _with_names(make: Any) -> Any:
    def made(params: Any, lr: float, betas: Any, eps: float, weight_decay: float) -> Any:
        named = [(f"mlp.{i}", p) for i, p in enumerate(params)]
        return make(named, lr, betas, eps, weight_decay, verbose=False)

    return made


def _with_probes(module: Any) -> Any:
    """Return the class with our random numbers, and without the balance that it makes at random."""
    torch = module.torch

    class Probed(module.Kron):
        updates = 0

        def step(self) -> None:
            self.updates += 1
            drawn = iter([torch.tensor(probe(name, self.updates, x).T).float() for name, x in MATRICES.items()])
            numbers = mock.patch.object(torch, "randn_like", lambda x: next(drawn))
            with numbers, mock.patch.object(self.rng, "random", lambda: 1.0), contextlib.redirect_stdout(None):
                super().step()

    return Probed


def _with_bases(make: Any) -> Any:
    """Return Dion with our random numbers."""

    class Drawn(make):
        def _init_opt_state_dion(self, param: Any, state: Any) -> None:
            super()._init_opt_state_dion(param, state)
            path = list(MATRICES)[len(self.state) - 1]
            state["Q"].copy_(state["Q"].new_tensor(probe(path, 1, state["Q"].shape)))

    return Drawn


def _quiet(make: Any, **options: Any) -> Any:
    """Return a class without its message about decay."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        with contextlib.redirect_stdout(None):
            return make(*args, **kwargs, **options)

    return made


def _decoupled(make: Any) -> Any:
    return functools.partial(make, weight_decouple=True)


def _training(make: Any) -> Any:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        optimizer = make(*args, **kwargs)
        optimizer.train()
        return optimizer

    return made


def _in_group(make: Any, names: str, **options: Any) -> Any:
    """Return a function of keywords of which those with these names belong to the group."""
    names_of_group, known = names.split(), inspect.signature(make).parameters.values()

    def made(params: Any, **arguments: Any) -> Any:
        group = {name: arguments.pop(name) for name in names_of_group}
        return make([{"params": params} | group], **arguments, **options)

    kept = [p for p in known if p.name not in options]
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names_of_group]
    made.__signature__ = inspect.Signature([*kept, *own])  # type: ignore[attr-defined]
    return made


def _with_directions(module: Any) -> Any:
    """Return APOLLO with our random numbers; theirs are drawn from the index of the parameter."""
    projector = module.random_projector.GradientProjector

    def drawn(self: Any, gradient: Any, kind: str) -> None:
        path, shape = list(MATRICES.items())[self.seed - 1]
        shape = (self.rank, shape[1]) if kind == "left" else (shape[0], self.rank)  # theirs is transposed
        self.ortho_matrix = gradient.new_tensor(probe(path, 1, shape).T / self.rank**0.5)

    projector.update_ortho_matrix = lambda self, gradient, proj_type: drawn(self, gradient, proj_type)
    return _in_group(module.APOLLOAdamW, "rank update_proj_gap scale proj_type scale_type proj")
