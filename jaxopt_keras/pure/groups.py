"""Parameter groups of the pure face: another kernel for other parameters, by their paths."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.plan import Plan, still
from jaxopt_keras.engine.programs.frozen import Still
from jaxopt_keras.engine.programs.multi import Joint
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.programs.partitioned import Partitioned, Tree
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options, check_pattern
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel, refuse_flat

DEFAULT = "default"


class Frozen(Kernel):
    """A kernel that moves nothing and keeps nothing: see `frozen`."""

    def __init__(self) -> None:
        super().__init__(Rule(), Options())

    @functools.cached_property
    def program(self) -> Any:
        return Still()

    def hyper(self) -> dict[str, Any]:
        return {}

    def describe(self, params: Any) -> Plan:
        return still(params)

    def __repr__(self) -> str:
        return "frozen()"

    def __reduce__(self) -> Any:
        return Frozen, ()


def frozen() -> Frozen:
    """A kernel for parameters that must not move; they have no state.

    >>> import jax.numpy as jnp
    >>> kernel = frozen()
    >>> kernel.init({"w": jnp.ones(3)}).slots
    {'w': {}}
    """
    return Frozen()


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


class Partition(Kernel):
    """A kernel for each group of parameters: see `partition`."""

    def __init__(self, kernels: Mapping[str, Kernel], default: Kernel | None = None) -> None:
        super().__init__(Rule(), Options())
        everything = dict(kernels) | ({} if default is None else {DEFAULT: default})
        for name, kernel in everything.items():
            if not isinstance(kernel, Kernel):
                raise TypeError(
                    f"`kernels` must map patterns to kernels, such as `jaxopt_keras.adam()`. Received: {name!r}: "
                    f"{kernel!r}"
                )
            if not isinstance(kernel.program, (Program, Offloaded, Still)):
                raise ValueError(
                    f"A group takes a plain kernel. Received: {name!r}: {kernel!r}. Put the whole partition inside: "
                    "`loss_scaled(partition(...))`."
                )
            refuse_flat(kernel, "partition")
        self.__dict__.update(kernels=everything, router=Router(tuple(kernels), default is not None))

    kernels: dict[str, Kernel]
    router: Router

    @functools.cached_property
    def program(self) -> Any:
        """The groups' programs. What one of them guards against, all are spared: a step is whole or not at all."""
        guards = any(kernel.options.skip_nonfinite for kernel in self.kernels.values())
        programs = tuple(_unguarded(kernel).program for kernel in self.kernels.values())
        return Partitioned(tuple(self.kernels), Joint(programs, guards), self.router)

    def hyper(self) -> dict[str, Any]:
        return {name: kernel.hyper() for name, kernel in self.kernels.items()}

    def current(self, hyper: dict[str, Any]) -> dict[str, Any]:
        return {name: kernel.current(hyper[name]) for name, kernel in self.kernels.items()}

    def init(self, params: Any) -> State:
        """As `Kernel.init`. A pattern that no parameter's path has is warned of: it is often misspelt."""
        group = Tree(self.program, params).group
        for pattern in self.router.patterns:
            if pattern not in group.values():
                warnings.warn(f"The pattern {pattern!r} takes no parameter. There are {list(group)}", stacklevel=2)
        return super().init(params)

    def replaced(self, state: State, **hyper: Any) -> State:
        """`state` with other hyperparameters in every group that has them; `in_group` for one of them.

        Raises:
            ValueError: for a name that no group has, or a value out of its range.
        """
        having = {name for name in self.kernels if hyper.keys() <= state.hyper[name].keys()}
        if not having:
            raise ValueError(
                f"No group has the run-time hyperparameters {sorted(hyper)}. There are "
                f"{ {name: sorted(values) for name, values in state.hyper.items()} }"
            )
        return functools.reduce(lambda s, name: self.in_group(s, name, **hyper), having, state)

    def in_group(self, state: State, group: str, **hyper: Any) -> State:
        """`state` with other hyperparameters in one group, named by its pattern, or "default"."""
        if group not in self.kernels:
            raise ValueError(f"There is no group {group!r}. There are {list(self.kernels)}")
        own = self.kernels[group].replaced(state._replace(hyper=state.hyper[group]), **hyper)
        return state._replace(hyper=state.hyper | {group: own.hyper})

    def describe(self, params: Any) -> Plan:
        """As `Kernel.describe`; a group's rule has its pattern before it."""
        groups, scalars = [], 0
        parts = Tree(self.program, params).split(params)
        for (name, kernel), own in zip(self.kernels.items(), parts, strict=True):
            part = kernel.describe(own)
            scalars += part.scalars
            groups += [
                dataclasses.replace(group, kind=group.kind._replace(rule=f"{name}: {group.kind.rule}"))
                for group in part.groups
            ]
        return Plan(groups, scalars)

    def __repr__(self) -> str:
        return f"partition({self.kernels!r})"

    def __reduce__(self) -> Any:
        kernels = dict(self.kernels)
        default = kernels.pop(DEFAULT) if self.router.has_default else None
        return Partition, (kernels, default)


def _unguarded(kernel: Kernel) -> Kernel:
    if not kernel.options.skip_nonfinite:
        return kernel
    return Kernel(kernel.rule, dataclasses.replace(kernel.options, skip_nonfinite=False))


def partition(kernels: Mapping[str, Kernel], default: Kernel | None = None) -> Partition:
    """One kernel out of several: each parameter goes to the kernel of the first pattern that is found in its path.

    Args:
        kernels: `{regular expression: kernel}`; it is searched for in the path, as `re.search` does. The order counts.
        default: the kernel of what no pattern takes. None: there must be no such parameter.

    Norms of a kernel (`global_clipnorm`, `skip_spikes`) are those of its own group. Where one has `skip_nonfinite`, it
    looks at all gradients that move something, and a bad one stops all groups alike. `state.slots` mirrors the
    parameters as without groups; `state.hyper` and `state.scalars` hold a dict for each group, by its pattern.

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
    return Partition(kernels, default)
