"""The variables that an optimizer knows: under which path, from when on, and how it starts without any."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.language.options import Options
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.copies import Copies, rebound, unique
from jaxopt_keras.stateful.custom.api import Custom
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.settings import Exclusion, Settings
from jaxopt_keras.stateful.state_views import slots_of, with_slots, without_masked
from jaxopt_keras.stateful.validation import checked, refuse_traced
from jaxopt_keras.stateful.variable import several, unique_name
from jaxopt_keras.stateful.variable_kinds import Handle, handle


class Registry(Settings, Custom, Copies):
    """Knowing variables, for `Optimizer`."""

    def _begin(self, options: Options, stem: str, **own: Any) -> None:
        """Sets every attribute to what it is before the first variable; `stem`: to make a name of."""
        fresh = dict(
            name=options.name or unique_name(snake_case(stem)),
            built=False,
            _rule=None,
            _options=options,
            _rate_source=None,  # a schedule, or a function without arguments; None: the number in state.hyperparams
            _paths=[],  # of the variables, in the order of arrival
            _handles={},  # path -> Handle
            _keys={},  # id of a variable -> path
            _unbound={},  # path -> shape: slots that came with a copy or a pickle, and wait for their variables
            _excluded=Exclusion(),
            _own=[],  # names of slots and variables that a user made, in that order
            _in_hooks=False,
            _kernel_cache=None,
        )
        for name, value in (fresh | own).items():
            object.__setattr__(self, name, value)

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the slots of `variables`, which the first `apply` does otherwise. More may join later."""
        with self._transaction():
            given = list(several("variables", variables))
            self._create_slots_of(self._register(self._taken_apart([None] * len(given), given)[1]))
        object.__setattr__(self, "built", True)

    def _handle(self, variable: Any) -> Handle:
        key = self._keys.get(id(variable))
        return handle(variable) if key is None else self._handles[key]

    def _key(self, variable: Any) -> str:
        try:
            return self._keys[id(variable)]
        except KeyError:
            path, buffer, known = handle(variable).path, getattr(variable, "buffer", None), list(self._handles)
            if buffer is not None and id(buffer) in self._keys:
                raise KeyError(
                    f"{self.name} knows `{path}` as a part of `{buffer.path}`. Pass that, as `pack_variables` gave it."
                ) from None
            raise KeyError(f"`{path}` is not known to {self.name}. It knows {known}") from None

    def _ensure(self, variables: list[Any]) -> dict[str, Any] | None:
        """Registers new variables, if there are any. Returns what to `_restore` should the step fail."""
        if all(id(v) in self._keys for v in variables):
            return None
        with self._transaction() as before:
            self._run_build_hooks(self._register(variables), type(self).build is not Registry.build)
            object.__setattr__(self, "built", True)
        return before

    def _register(self, variables: list[Any]) -> list[str]:
        """Gives each new variable a path and slots; returns the paths of those that no slots of a copy waited for."""
        new = {id(v): handle(v) for v in variables if id(v) not in self._keys}
        if not new:
            return []
        self._check_outside_hooks()
        for h in new.values():
            buffer = getattr(h.variable, "buffer", None)
            if buffer is not None and id(buffer) in self._keys:
                raise ValueError(
                    f"{self.name} updates `{buffer.path}`, in which `{h.path}` lies, as a whole. Give it the gradient "
                    "of the buffer: `value_and_grad(loss, packed)` with what `pack_variables` gave."
                )
        handles, keys, unbound, paths = dict(self._handles), dict(self._keys), dict(self._unbound), [*self._paths]
        bound, fresh = rebound(list(new.values()), unbound), []
        for h in new.values():
            key = bound.get(id(h.variable)) or unique(h.path, paths)
            handles[key], keys[id(h.variable)] = h, key
            if unbound.pop(key, None) is None:
                fresh.append(key)
                paths.append(key)
        foreign, state = isinstance(self._rule, Foreign), self._state
        if foreign and self._paths and (fresh or unbound):
            raise ValueError(
                f"{self.name} runs an optax transformation, which takes all its variables at once. It has "
                f"{self._paths}. Received: {[h.path for h in new.values()]}"
            )
        kernel = Kernel(self._rule, self._effective(self._options, handles))
        made = kernel.init({k: h.read() for k, h in handles.items() if id(h.variable) in new})
        refuse_traced(made.count)
        made = made._replace(slots=without_masked(made.slots))
        met = [k for k, h in handles.items() if id(h.variable) in new]
        slots = {key: self._merged(slots_of(made, key), slots_of(state, key)) for key in met}
        state = with_slots(state, slots, {**made.slots, **state.slots})
        scalars = made.scalars if foreign and not self._paths else made.scalars | state.scalars
        for name, value in dict(
            _handles=handles, _keys=keys, _unbound=unbound, _paths=paths, _kernel_cache=None
        ).items():
            object.__setattr__(self, name, value)
        self._set_state(state._replace(scalars=scalars))
        return fresh

    def _taken_apart(self, grads: list[Any], variables: list[Any]) -> tuple[list[Any], list[Any]]:
        """The same with the variables of a buffer in its place, where something sees where one of them ends."""
        taken: list[tuple[Any, Any]] = []
        for g, v in zip(grads, variables, strict=True):
            if isinstance(v, Buffer) and id(v) not in self._keys and self._sees_parts(v):
                g = checked(g, self._handle(v))
                arrays = {} if g is None else v.split(jnp.asarray(g))
                taken += [(arrays.get(id(w)), w) for w in v.variables]
            else:
                taken.append((g, v))
        return [g for g, _ in taken], [v for _, v in taken]

    def _sees_parts(self, buffer: Buffer) -> bool:
        """Whether the variables of `buffer` must be updated one by one: by what they are, or since they are so far."""
        known = any(id(v) in self._keys or v.path in self._unbound for v in buffer.variables)
        return known or not self._kernel().core.elementwise or self._divides(self._options, buffer) is not None


def snake_case(name: str) -> str:
    """As Keras makes names of classes: RMSprop -> rm_sprop, AdamW -> adam_w."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
