"""Parameter groups of the pure face: a kernel for each group, chosen by the paths of the parameters."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.multi import Multi, unguarded
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.programs.partitioned import Partitioned
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.language.option_values import check_pattern
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.pure.arguments import check_kernel
from jaxopt_keras.pure.building import refuse_flat
from jaxopt_keras.pure.kernel import Kernel

DEFAULT = "default"


def frozen() -> Kernel:
    """A kernel that leaves its parameters unchanged, and keeps no state for them.

    >>> import jax.numpy as jnp
    >>> kernel = frozen()
    >>> kernel.init({"w": jnp.ones(3)}).slots
    {}
    """
    return Kernel(Frozen())


class Router(NamedTuple):
    """Assigns a group to every path: the first pattern that matches it (`re.search`), else the default."""

    patterns: tuple[str, ...]
    has_default: bool

    def __call__(self, paths: tuple[str, ...]) -> list[str]:
        return [self.of(path) for path in paths]

    def of(self, path: str) -> str:
        """The group of one path; raises a ValueError if it has none."""
        found = first_match(self.patterns, path)
        if found is None and not self.has_default:
            raise ValueError(
                f"Every parameter needs a kernel. Received: `{path}`, which no pattern of {list(self.patterns)} "
                "matches. Pass `default=`; `default=jaxopt_keras.frozen()` leaves such parameters unchanged."
            )
        return DEFAULT if found is None else found


def partition(kernels: Mapping[str, Kernel], default: Kernel | None = None) -> Kernel:
    """One kernel out of several. Each parameter is updated by the kernel of the first pattern that matches its path.

    Args:
        kernels: `{regular expression: kernel}`, in the order in which they are tried. An expression is searched
            for in the path (`re.search`); the first that is found selects the kernel. `init` warns of one that selects
            no parameter.
        default: the kernel of parameters that no pattern matches. Default: None, such a parameter is an error.

    Norms of a kernel (`global_clipnorm`, `skip_spikes`) are over its own group. If one kernel has `skip_nonfinite`, the
    gradients and results of all groups are checked, except of frozen ones, and a bad one skips the step of all groups;
    windows of accumulation then start anew if it was a result.
    `state.slots` has the layout that it has without groups; `state.scalars` has a dict for each group, by its pattern.

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
        TypeError: if a value is no kernel. ValueError: for a pattern that is no regular expression, for the pattern
        "default", if there is no kernel at all, and in `init` or `step` for a parameter without a kernel.
    """
    if not isinstance(kernels, Mapping):
        raise TypeError(f"`kernels` must map patterns to kernels. Received: kernels={kernels!r}")
    for pattern in kernels:
        check_pattern("kernels", pattern)
        if pattern == DEFAULT:
            raise ValueError(
                f"{DEFAULT!r} is reserved, no pattern: pass the kernel as `default=`, or write '^{DEFAULT}$'."
            )
    if not kernels and default is None:
        raise ValueError("`partition` needs at least one kernel. Received: none")
    everything = dict(kernels) | ({} if default is None else {DEFAULT: default})
    for name, kernel in everything.items():
        check_kernel("kernels", kernel, name)
        if not isinstance(kernel.program, (Program, Offloaded, Frozen)):
            raise ValueError(
                f"The kernel of a group must be plain. Received: {name!r}: {kernel!r}. Wrap the partition instead: "
                "`loss_scaled(partition(...))`."
            )
        refuse_flat(kernel.program, "partition")
    guards = guard.of_groups(kernel.options for kernel in everything.values())
    programs = tuple(unguarded(kernel.program) for kernel in everything.values())
    router = Router(tuple(kernels), default is not None)
    return Kernel(Partitioned(Multi(programs, guards), tuple(everything), router))
