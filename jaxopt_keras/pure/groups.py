"""Parameter groups of the pure face: another kernel for other parameters, by their paths."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.multi import Multi
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.programs.partitioned import Partitioned
from jaxopt_keras.language.options import check_pattern
from jaxopt_keras.pure.building import refuse_flat
from jaxopt_keras.pure.kernel import Kernel

DEFAULT = "default"


def frozen() -> Kernel:
    """A kernel for parameters that must not move; they have no state.

    >>> import jax.numpy as jnp
    >>> kernel = frozen()
    >>> kernel.init({"w": jnp.ones(3)}).slots
    {}
    """
    return Kernel(Frozen())


class Router(NamedTuple):
    """The group of every path: that of the first pattern found in it, else the default."""

    patterns: tuple[str, ...]
    has_default: bool

    def __call__(self, paths: tuple[str, ...]) -> list[str]:
        return [self.of(path) for path in paths]

    def of(self, path: str) -> str:
        """Raises a ValueError where there is none."""
        found = next((pattern for pattern in self.patterns if re.search(pattern, path)), None)
        if found is None and not self.has_default:
            raise ValueError(
                f"Every parameter needs a kernel, and there is none for `{path}`: no pattern of "
                f"{list(self.patterns)} is found in it. Pass `default=`; `jaxopt_keras.frozen()` keeps it as it is."
            )
        return DEFAULT if found is None else found


def _unguarded(program: Any) -> Any:
    """A group's program without its guard: the decision is taken for all groups."""
    if isinstance(program, Offloaded):
        return dataclasses.replace(program, inner=_unguarded(program.inner))
    if not program.options.skip_nonfinite:
        return program
    return dataclasses.replace(program, options=dataclasses.replace(program.options, skip_nonfinite=False))


def partition(kernels: Mapping[str, Kernel], default: Kernel | None = None) -> Kernel:
    """One kernel out of several: each parameter goes to the kernel of the first pattern that is found in its path.

    Args:
        kernels: `{regular expression: kernel}`; it is searched for in the path, as `re.search` does. The order counts.
        default: the kernel of what no pattern takes. None: there must be no such parameter.

    Norms of a kernel (`global_clipnorm`, `skip_spikes`) are those of its own group. Where one has `skip_nonfinite`, it
    looks at all gradients that move something, and a bad one stops all groups alike. The trees of `state.slots` are
    like the parameters as without groups; `state.scalars` holds a dict for each group, by its pattern.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel = jk.partition({"embed": jk.frozen(), "bias$": jk.sgd(0.5)}, default=jk.adam())
    >>> params = {"embed": jnp.ones(4), "dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    >>> state = kernel.init(params)
    >>> grads = {"embed": jnp.ones(4), "dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    >>> params, state = kernel.step(params, state, grads)
    >>> params["embed"].tolist(), params["dense"]["bias"].tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.5, 0.5])
    >>> [(group.kind.rule, group.paths, group.bytes) for group in kernel.describe(params).groups]
    [('embed: frozen', ['embed'], 0), ('bias$: SGD', ['dense/bias'], 0), ('default: Adam', ['dense/kernel'], 64)]

    Raises:
        TypeError: if something is no kernel. ValueError: for a pattern that is no regular expression, a pattern
        "default", or no kernel at all; when it runs, for a parameter that no kernel takes.
    """
    if not isinstance(kernels, Mapping):
        raise TypeError(f"`kernels` must map patterns to kernels. Received: kernels={kernels!r}")
    for pattern in kernels:
        check_pattern("kernels", pattern)
        if pattern == DEFAULT:
            raise ValueError(f"{DEFAULT!r} is no pattern here: pass the kernel as `default=`, or write '^{DEFAULT}$'.")
    if not kernels and default is None:
        raise ValueError("`partition` needs a kernel at least. Received: none")
    everything = dict(kernels) | ({} if default is None else {DEFAULT: default})
    for name, kernel in everything.items():
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"`kernels` must map patterns to kernels, such as `jaxopt_keras.adam()`. Received: {name!r}: {kernel!r}"
            )
        if not isinstance(kernel.program, (Program, Offloaded, Frozen)):
            raise ValueError(
                f"A group takes a plain kernel. Received: {name!r}: {kernel!r}. Put the whole partition inside: "
                "`loss_scaled(partition(...))`."
            )
        refuse_flat(kernel.program, "partition")
    guards = any(kernel.options.skip_nonfinite for kernel in everything.values())
    programs = tuple(_unguarded(kernel.program) for kernel in everything.values())
    router = Router(tuple(kernels), default is not None)
    return Kernel(Partitioned(tuple(everything), Multi(programs, guards), router))
