"""Copies of an optimizer: `copy`, `deepcopy` and pickle keep its state, but not its variables."""

import copy
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable_kinds import Handle, handle

_NOT_COPIED = ("_handles", "_keys", "_views", "_stand_ins", "_kernel_cache", "_rate_now")


class Copies(Transactions):
    """Copying and pickling of an optimizer."""

    @locked
    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the variables: a copy is matched with its own variables (`match_unbound`)."""
        state = self._state  # with unpacked slots
        if isinstance(state.slots, list):  # of the states of inner optimizers, which are among the attributes
            state = state._replace(slots={})
        kept = {k: v for k, v in self.__dict__.items() if k not in _NOT_COPIED}
        shapes = self._unbound | {k: h.shape for k, h in self._handles.items()}
        ids = {id(v) for v in self._excluded.variables}
        known = {k for k, h in self._handles.items() if id(h.variable) in ids}
        unknown = {handle(v).path for v in self._excluded.variables}
        return kept | {
            "_kept": jax.tree.map(_host_copy, state),
            "_unbound": {k: shapes[k] for k in self._paths},
            "_excluded": self._excluded._replace(variables=(), paths=self._excluded.paths | known | unknown),
        }

    def __setstate__(self, kept: dict[str, Any]) -> None:
        attributes = self.__dict__  # may contain views and stand-ins already, which pickle restored before
        views, stand_ins, keys = (attributes.get(name, {}) for name in ("_views", "_stand_ins", "_keys"))
        attributes.update(kept, _handles={}, _keys=keys, _kernel_cache=None, _views=views, _stand_ins=stand_ins)
        attributes["_kept"] = jax.tree.map(jnp.asarray, kept["_kept"])
        if self._rate_source is not None:
            self._configure_rate(self._rate_source)

    @locked
    def __copy__(self) -> Self:
        """Return a copy for the same variables, with a copy of the state."""
        shared = [self._options, self._rate_source, *(h.variable for h in self._handles.values())]
        if not isinstance(self._rule, Hooks):
            shared.append(self._rule)
        inner = {id(o): copy.copy(o) for o in getattr(self, "_inner", ())}
        # Deep, since attributes of a custom optimizer may be views. The copy needs views of its own state.
        new = copy.deepcopy(self, {id(x): x for x in shared} | inner)
        keys = {id(h.variable): key for key, h in self._handles.items()}
        new.__dict__.update(_handles=dict(self._handles), _unbound=dict(self._unbound), _excluded=self._excluded)
        new.__dict__["_keys"].update(keys)
        return new


def _host_copy(x: Any) -> Any:
    """Return a copy of an array as a NumPy array; of extended dtypes, which NumPy lacks, as a JAX array."""
    return jnp.copy(x) if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.array(x)


def match_unbound(handles: list[Handle], unbound: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Match the slots of a copied or restored optimizer with variables.

    Variables are matched by path if all paths are found. Otherwise, if number and shapes agree, they are matched by
    order, since a rebuilt model may number its names differently. Otherwise those whose paths are found are matched.
    Shapes must agree in all cases.

    Args:
        handles: the variables.
        unbound: shapes by path, of slots without a variable.

    Returns:
        The slots' path by the variable's id, for the variables that are matched.
    """
    by_path: dict[int, str] = {}
    for h in handles:
        path = deduplicated(h.path, by_path.values())
        if unbound.get(path) == tuple(h.shape):
            by_path[id(h.variable)] = path
    in_order = [tuple(h.shape) for h in handles] == list(unbound.values())
    if len(by_path) < len(unbound) and in_order:
        return {id(h.variable): path for h, path in zip(handles, unbound, strict=True)}
    return by_path


def deduplicated(path: str, taken: Any) -> str:
    """Return `path`, with a number at its end if it is in `taken`."""
    taken = set(taken)
    return next(p for p in (path, *(f"{path}_{i}" for i in range(1, len(taken) + 2))) if p not in taken)
