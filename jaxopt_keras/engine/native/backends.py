"""The backends of loops, by platform; and where none can run a phase, so that XLA runs its equations.

XLA cannot split an opaque call over several devices and would gather the arrays. An exported program must run
elsewhere.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
from jax.interpreters import mlir

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.call import InC
from jaxopt_keras.engine.native.cuda.launch import InCuda, Launch
from jaxopt_keras.engine.native.cuda.ptx import Ptx
from jaxopt_keras.engine.native.loop import Leaf
from jaxopt_keras.engine.native.phase import Phase, phase_p


class Backend(Protocol):
    """Runs loops on one platform.

    Attributes:
        has_guards: whether its loops can look at a flag (`Phase.guard`).
    """

    has_guards: bool

    def unavailable(self) -> str:
        """Return why it can run no loop on this machine, in one line; "" if it can."""
        ...

    def refuses(self, leaf: Leaf) -> str:
        """Return why it has no form for a loop; "" if it has one."""
        ...

    def parts(self, phase: Phase, numbers: list[int]) -> Iterable[Any]:
        """Return the calls for the leaves of a phase with these numbers, each a `Phase` with a method `native`."""
        ...


BACKENDS: dict[str, Backend] = {"cpu": InC(), "cuda": InCuda(Ptx())}


def platform() -> str:
    """Return the default platform, with the name that programs are lowered for."""
    name = jax.default_backend()
    return name if name != "gpu" else "cuda" if "cuda" in jax.devices()[0].client.platform_version else "rocm"


def unavailable() -> str:
    """Return why no loop can run on the default platform, in one line; "" where loops can."""
    backend = BACKENDS.get(platform())
    return backend.unavailable() if backend else f"on {platform()}"


def none_is_available() -> bool:
    """Whether no loop can run on this machine, on whatever platform."""
    return all(backend.unavailable() for backend in BACKENDS.values())


def refuses(leaf: Leaf) -> str:
    """Return why the default platform has no form for a loop; "" if it has one."""
    backend = BACKENDS.get(platform())
    return backend.refuses(leaf) if backend else ""


def against(module: Any) -> str:
    """Why a program cannot call loops; "" where it can."""
    if tuple(module.platforms) not in [(name,) for name in BACKENDS]:
        return f"it is for {', '.join(module.platforms)}"
    if module.lowering_parameters.for_export:
        return "it is exported, to run elsewhere"
    where = module.axis_context
    devices = getattr(where, "num_devices", None)
    if devices is None and set(where.manual_axes) == set(where.mesh.axis_names):  # `shard_map`: each runs its own part
        devices = 1
    if devices != 1:
        return "it is for several devices"
    return BACKENDS[module.platforms[0]].unavailable()


def _lowered(context: Any, *operands: Any, phase: Phase) -> Any:
    module = context.module_context
    reason = against(module)
    on_gpu = set(module.platforms) <= {"cuda", "rocm"}
    by_xla = Phase.in_two_passes if on_gpu else Phase.reference
    if reason:
        refuse(phase, reason)
        function = functools.partial(by_xla, phase)
    else:
        function = functools.partial(_run, BACKENDS[module.platforms[0]], by_xla, phase)
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def _run(backend: Backend, by_xla: Callable[..., Any], phase: Phase, *operands: Any) -> list[Any]:
    """Runs the loops of a phase on a backend, and through XLA those that it refuses."""
    known = phase.named(operands)
    reasons = [backend.refuses(leaf) for leaf in phase.leaves]
    refused = [i for i, reason in enumerate(reasons) if reason]
    parts = [*backend.parts(phase, [i for i, reason in enumerate(reasons) if not reason])]
    if refused:
        refuse(phase, reasons[refused[0]])
        parts.append(Phase.part(phase, refused))
    for part in parts:
        arrays = [known[x] for x in part.operands]
        try:
            results = part.native(*arrays) if hasattr(part, "native") else by_xla(part, *arrays)
        except build.Unavailable as error:
            refuse(phase, build.fallback(error))
            part.return_totals_one_by_one()
            results = by_xla(part, *arrays)
        known.learn(part.results, results)  # a packed buffer keeps its name
    launches = [part for part in parts if isinstance(part, Launch)]
    for joint in phase.joints:
        rest = dict.fromkeys(joint.totals)
        reduced = [x for launch in launches for x in launch.reduced(joint, rest)]
        known[joint.value] = joint.of([*reduced, *(known[x] for x in rest)])
    return [known.result(x) for x in phase.results]


def refuse(phase: Phase, reason: str) -> None:
    """Raise an error if the phase must not run through XLA.

    Raises:
        Unavailable: with the reason.
    """
    if phase.strict:
        raise build.Unavailable(f'`engine="native"` cannot run here: {reason}. Use `engine="auto"`.')


mlir.register_lowering(phase_p, _lowered)
