"""Copies of an optimizer: `copy`, `deepcopy` and pickle take its state along, but not its variables."""

import copy
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.variable_kinds import Handle, handle

_LEFT_BEHIND = ("_handles", "_keys", "_views", "_stand_ins", "_kernel_cache", "_rate_now")


class Copies:
    """The means of copying, for `Optimizer`."""

    _state: Any
    _rule: Any
    _rate_source: Any
    _options: Any
    _excluded: Any
    _paths: list[str]
    _handles: dict[str, Handle]
    _unbound: dict[str, tuple[int, ...]]

    def _take_rate(self, value: Any) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """All but the variables: a copy meets its own by path, or by their order and shapes (`rebound`)."""
        state = self._state  # unpacks what is packed
        kept = {k: v for k, v in self.__dict__.items() if k not in _LEFT_BEHIND}
        shapes = self._unbound | {k: h.shape for k, h in self._handles.items()}
        ids = {id(v) for v in self._excluded.variables}
        known = {k for k, h in self._handles.items() if id(h.variable) in ids}
        unknown = {handle(v).path for v in self._excluded.variables}
        return kept | {
            "_kept": jax.tree.map(_detached, state),
            "_unbound": {k: shapes[k] for k in self._paths},
            "_excluded": self._excluded._replace(variables=(), paths=self._excluded.paths | known | unknown),
        }

    def __setstate__(self, kept: dict[str, Any]) -> None:
        met = self.__dict__  # views and stand-ins that a pickle met before, and which find their optimizer here
        views, stand_ins, keys = (met.get(name, {}) for name in ("_views", "_stand_ins", "_keys"))
        met.update(kept, _handles={}, _keys=keys, _kernel_cache=None, _views=views, _stand_ins=stand_ins)
        met["_kept"] = jax.tree.map(jnp.asarray, kept["_kept"])
        if self._rate_source is not None:
            self._take_rate(self._rate_source)

    def __copy__(self) -> Self:
        """A copy for the same variables, with a state of its own."""
        twin = object.__new__(type(self))
        shared = [self._options, self._rate_source, *(h.variable for h in self._handles.values())]
        if not isinstance(self._rule, Hooks):
            shared.append(self._rule)
        # Deep, since a custom optimizer's attributes hold views: those of the copy are to show the copy's state.
        kept = copy.deepcopy(self.__getstate__(), {id(self): twin} | {id(x): x for x in shared})
        twin.__setstate__(kept)
        keys = {id(h.variable): key for key, h in self._handles.items()}
        twin.__dict__.update(_handles=dict(self._handles), _unbound=dict(self._unbound), _excluded=self._excluded)
        twin.__dict__["_keys"].update(keys)
        return twin


def _detached(x: Any) -> Any:
    """A copy of an array, as NumPy's where there is such a dtype."""
    return jnp.copy(x) if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.array(x)


def rebound(handles: list[Handle], unbound: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Which waiting slots belong to which variable, by the variable's id.

    By path, where every path that waits is found; else, if number and shapes agree, by order: a model that was made
    anew has other numbers in its names. Else by path those that are found. The shape must agree in any case.
    """
    by_path: dict[int, str] = {}
    for h in handles:
        path = unique(h.path, by_path.values())
        if unbound.get(path) == tuple(h.shape):
            by_path[id(h.variable)] = path
    in_order = [tuple(h.shape) for h in handles] == list(unbound.values())
    if len(by_path) < len(unbound) and in_order:
        return {id(h.variable): path for h, path in zip(handles, unbound, strict=True)}
    return by_path


def unique(path: str, taken: Any) -> str:
    """`path`, or with a number at its end if it is taken."""
    taken = set(taken)
    return next(p for p in (path, *(f"{path}_{i}" for i in range(1, len(taken) + 2))) if p not in taken)
