"""torch: its optimizers (fused, foreach, one array after the other), and the loop for optimizers of its extensions."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.parity.peer import Absent, load
from benchmarks.parity.torch import Torch
from benchmarks.problem import Problem, Rows, device
from benchmarks.runs import Implementation, Run, Wish

NAME = "torch"
FORMS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}
Make = Callable[..., Any]  # makes a torch optimizer from parameters and arguments


def available(platform: str) -> str | None:
    try:
        torch = Torch().torch
    except Absent as absent:
        return f"{absent}: pip install torch==2.13.0 (with the index of your device)"
    if platform == "gpu" and not torch.cuda.is_available():
        return "this torch has no CUDA"
    return None if platform in ("cpu", "gpu") else f"torch here does not run on {platform}"


def implementations(wish: Wish) -> list[Implementation]:
    torch, variant = Torch().torch, "optax"
    torch.set_num_threads(wish.threads)
    if wish.workload.kind == "rows":
        sparse = Implementation("torch, SparseAdam", NAME, start_sparse, "keras", sparse="lazy")
        return [sparse if wish.rule.__name__ == "Adam" else sparse.refusing("SparseAdam is Adam, without decay")]
    if wish.workload.kind == "training":
        return [Implementation(NAME, NAME, start_sparse, refused="not compared: the model is in plain JAX")]
    try:
        dialect = Torch().dialect(wish.rule)
        variant = dialect.agreement.variant
    except Absent as absent:
        return [Implementation(NAME, NAME, start_sparse, refused=str(absent))]
    known = inspect.signature(dialect.function).parameters
    found = []
    for form, arguments in FORMS.items():
        make = functools.partial(dialect.function, **arguments)
        name, start = f"torch, {form}", functools.partial(TorchRun, make=make)
        each = Implementation(name, NAME, start, variant, copies=3 if form == "fused" else 4)
        missing = arguments.keys() - known.keys()
        found.append(each.refusing(f"torch.optim.{dialect.function.__name__} has no `{form}`") if missing else each)
    return found


def start_sparse(problem: Problem) -> Run:
    return TorchRun(problem, make=load("torch").optim.SparseAdam)


def tensor(x: NDArray[Any], device: str) -> Any:
    """Convert to a tensor; on a CPU it shares the memory."""
    torch = load("torch")
    if x.dtype == ml_dtypes.bfloat16:  # torch does not convert it from NumPy
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(x).to(device)


class TorchRun:
    """A loop over `optimizer.step()`; the gradients are assigned as backward would."""

    def __init__(self, problem: Problem, make: Make, **more: Any) -> None:
        self.torch = load("torch")
        self.device = "cuda" if device().platform == "gpu" else "cpu"
        self.problem, self.count = problem, 0
        self.parameters = {
            name: self.torch.nn.Parameter(tensor(p.copy(), self.device)) for name, p in problem.params.items()
        }
        self.given = [[self.gradient(name, g) for name, g in grads.items()] for grads in problem.given]
        self.optimizer = make(list(self.parameters.values()), **self.arguments(make), **more)

    def gradient(self, name: str, g: Any) -> Any:
        if not isinstance(g, Rows):
            return tensor(g, self.device)
        indices = tensor(g.indices.astype(np.int64)[None], self.device)
        shape = self.problem.params[name].shape
        return self.torch.sparse_coo_tensor(indices, tensor(g.values, self.device), shape, check_invariants=False)

    def rate(self) -> float:
        rate = self.problem.rate
        return float(rate(self.count)) if callable(rate) else rate

    def arguments(self, make: Make) -> dict[str, Any]:
        """Translate our arguments to torch's; omit those that `make` does not have."""
        case = self.problem.case("optax")
        ours = {"learning_rate": self.rate(), "weight_decay": case.options.get("weight_decay") or 0.0} | case.hyper
        known = inspect.signature(make).parameters
        return {name: x for name, x in Torch().dialect(self.problem.rule).arguments(ours).items() if name in known}

    def step(self) -> None:
        if self.count < len(self.given) or len(self.given) > 1:
            for p, g in zip(self.parameters.values(), self.given[self.count % len(self.given)], strict=True):
                p.grad = g
        if callable(self.problem.rate):
            self.optimizer.param_groups[0]["lr"] = self.rate()
        self.optimizer.step()
        self.count += 1

    def block(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def params(self) -> dict[str, NDArray[Any]]:
        return {name: p.detach().float().cpu().numpy() for name, p in self.parameters.items()}

    def held(self) -> int:
        states = [x for state in self.optimizer.state.values() for x in state.values()]
        tensors = [x for x in (*self.parameters.values(), *states) if isinstance(x, self.torch.Tensor)]
        return sum(x.untyped_storage().nbytes() for x in map(plain, tensors))


def plain(x: Any) -> Any:
    """Return the codes of a quantized tensor; its scales are negligible."""
    return getattr(x, "codes", x)
