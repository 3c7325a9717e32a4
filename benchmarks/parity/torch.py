"""torch as a peer."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.parity.cases import Case, Terms
from benchmarks.parity.histories import History, to_numpy
from benchmarks.parity.oracle import NEWTON_SCHULZ
from benchmarks.parity.peer import Absent, Agreement, Dialect, load
from jaxopt_keras.language.rule import Rule, fields_of


def betas(beta_1: float, beta_2: float) -> dict[str, Any]:
    return {"betas": (beta_1, beta_2)}


TORCH = {
    "SGD": Agreement(lambda momentum, nesterov: {"nesterov": nesterov and momentum > 0}),
    "Adam": Agreement(betas, pinned={"amsgrad": False}),
    "AdamW": Agreement(betas, pinned={"amsgrad": False}, decayed=True),
    "Adamax": Agreement(betas),
    # Keras's and the paper's 0.96^t; torch's default is 0.96^(t / 250).
    "Nadam": Agreement(
        lambda beta_1, beta_2: betas(beta_1, beta_2) | {"momentum_decay": 1.0, "decoupled_weight_decay": True},
        variant="keras",
        decayed=True,
    ),
    # Torch adds epsilon to the root, this library under the root: equal if epsilon is negligible.
    "RMSprop": Agreement(pinned={"epsilon": 1e-30}, scheduled=False),  # torch's momentum does not contain the rate
    "Adagrad": Agreement(pinned={"epsilon": 1e-30}),
    "Adadelta": Agreement(decayed=True),
    # Torch's epsilons bound the root from below.
    "Adafactor": Agreement(
        lambda beta_2_decay, epsilon_1, epsilon_2: {"beta2_decay": beta_2_decay, "eps": (epsilon_1**0.5, epsilon_2)},
        pinned={"epsilon_1": 1e-30, "clip_threshold": 1.0},
        variant="keras",
    ),
    # Of Muon's other scale torch has the one for (out, in); ours is for (in, out).
    "Muon": Agreement(
        lambda muon_a, muon_b, muon_c: {
            "ns_coefficients": (muon_a, muon_b, muon_c), "adjust_lr_fn": "match_rms_adamw",
        },
        pinned={"scale": "rms", "rms_rate": 0.2} | NEWTON_SCHULZ,
        variant="keras",
        decayed=True,
        matrices=True,
    ),
}  # fmt: skip
MATRICES = {"kernel": (6, 4), "wide": (3, 5), "square": (4, 4)}
TORCH_NAMES = {"learning_rate": "lr", "epsilon": "eps", "rho": "alpha"}


class Torch:
    """The class of the same name in `torch.optim`, if it computes the same."""

    def __init__(self) -> None:
        self.torch = load("torch")
        self.version = self.torch.__version__

    def turned(self, x: Any) -> Any:
        """Convert an array to the layout of the other side."""
        return x

    def dialect(self, optimizer: type[Rule]) -> Dialect:
        name = {"Nadam": "NAdam"}.get(optimizer.__name__, optimizer.__name__)
        if optimizer.__name__ not in TORCH:
            raise Absent("none in torch.optim, or another one")
        return Dialect(getattr(self.torch.optim, name), TORCH_NAMES, TORCH[optimizer.__name__])

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        dialect = self.dialect(optimizer)
        agreement = dialect.agreement
        names = {name for name in fields_of(optimizer) if dialect.knows(name)} | {"clipvalue"}
        names |= {"schedule"} if agreement.scheduled else set()
        names |= {"weight_decay"} if agreement.decayed else set()
        if agreement.matrices:  # equal numbers, which a clip makes, leave open what is the largest slice
            shapes = agreement.shapes or MATRICES
            return [Terms(agreement.variant, names - {"clipvalue"}, agreement.pinned, shapes, 0.1)]
        return [Terms(agreement.variant, names, agreement.pinned)]

    def run(self, case: Case) -> History:
        torch, dialect = self.torch, self.dialect(case.optimizer)
        params = {name: torch.nn.Parameter(torch.tensor(self.turned(p))) for name, p in case.params.items()}
        rate = case.rate if callable(case.rate) else lambda count: case.rate
        decay = case.options.get("weight_decay") or 0.0
        arguments = dialect.arguments({"learning_rate": rate(0), "weight_decay": decay} | case.hyper)
        optimizer = dialect.function(list(params.values()), **arguments)
        history = []
        for count, grads in enumerate(case.grads):
            for name, p in params.items():
                p.grad = torch.tensor(self.turned(grads[name]))
            if limit := case.options.get("clipvalue"):
                torch.nn.utils.clip_grad_value_(list(params.values()), limit)
            for group in optimizer.param_groups:
                group["lr"] = rate(count)
            with in_float32(torch):
                optimizer.step()
            history.append(to_numpy({name: self.turned(p.detach().numpy()) for name, p in params.items()}))
        return history


@contextlib.contextmanager
def in_float32(torch: Any) -> Iterator[None]:
    """Make Muon iterate in float32, where it asks for bfloat16."""
    own = mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with own, mock.patch.object(torch, "bfloat16", torch.float32):
        yield
