"""Steps while variables and state are mapped: inside another optimizer's hooks, and inside an overridden `apply`."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from jaxopt_keras.stateful.call import given_of
from jaxopt_keras.stateful.custom.hooks import INNER, places
from jaxopt_keras.stateful.custom.overrides import CALLS, is_library, overridden
from jaxopt_keras.stateful.custom.stand_ins import stand_in
from jaxopt_keras.stateful.keras_scope import mapped
from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.state_views import read, with_values
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import Variable, value_of


class Scoped(Transactions):
    """Steps as pure functions, and steps whose variables and state are those of the active scope."""

    def _pure_step(
        self, grads: dict[str, Any], state: Any, params: dict[str, Any], reduce: bool, **others: Any
    ) -> tuple[Any, Any]:
        """Return parameters and state after a step from `params` and `state`, as a pure function. All are by path.

        `others` are a loss, a weight and a flush, as in `apply_gradients`, if they were given.
        """
        others = {name: x for name, x in others.items() if x is not None}
        if overridden(type(self), CALLS) and not self._mapped_variables:
            return self._call_overridden(grads, state, params, others)
        return self._plain_step(grads, state, params, reduce, given_of(**others))

    def _plain_step(
        self, grads: dict[str, Any], state: Any, params: dict[str, Any], reduce: bool, given: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return the results of the pipeline, without overridden methods around it."""
        call = self._prepare_step(grads, state, params).given(given)
        kernel, kept = call.kernel, (call.params, call.state)
        step = kernel.compiled.on("step", *kept) if self.jit_compile else uncompiled(kernel.program)
        new, result = step(call.params, call.state, call.grads, call.hyper, reduce=reduce)
        return self._results(call, state, new, result)

    def _apply_in_scope(self, grads: list[Any], variables: list[Any], given: dict[str, Any]) -> None:
        """Step within the active scope: read the variables and the state there, and assign the results."""
        keys = [self._keys[id(v)] for v in variables]
        hook_variables = {self._keys[i]: v for i, v in self._mapped_variables.items() if i in self._keys}
        params = {k: value_of(v) for k, v in hook_variables.items()}
        present = self._own_state()
        state = with_values(present, [(place, value_of(self.view(place))) for place in places(present)])
        by_path = {k: value_of(g) for k, g in zip(keys, grads, strict=True) if g is not None}
        new, result = self._plain_step(by_path, state, params, False, given)
        for k in by_path:
            hook_variables[k].assign(new[k])
        for place in places(result._replace(hyperparams={})):
            self.view(place).assign(read(result, place))

    def _call_overridden(
        self, by_path: dict[str, Any], state: Any, params: dict[str, Any], others: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return the results of an overridden `apply` or `apply_gradients`, called as Keras calls it."""
        paths = [*params]
        handles = {k: self._handles[k].variable for k in paths}
        variables = {k: v if isinstance(v, Variable) else stand_in(self, k) for k, v in handles.items()}
        inner = state.scalars.get(INNER, {})
        own = state._replace(scalars={n: x for n, x in state.scalars.items() if n != INNER})
        owned = [(self, own), *((self._nested[path], part) for path, part in inner.items())]
        views = {x.view(place): read(part, place) for x, part in owned for place in places(part)}
        scope = Scope([*variables.values(), *views], [*params.values(), *views.values()])
        known = {id(handles[k]): variables[k] for k in paths}
        with contextlib.ExitStack() as stack:
            for x, _ in owned:
                stack.callback(x.__dict__.update, {"_mapped_variables": x._mapped_variables})
                x.__dict__["_mapped_variables"] = known
            stack.enter_context(mapped(scope))
            grads, given_to = [by_path.get(k) for k in paths], [variables[k] for k in paths]
            if "apply_gradients" in _defined(type(self)):
                self.apply_gradients(zip(grads, given_to, strict=True), **others)
            else:
                self.apply(grads, given_to, **others)
        new = {k: scope.values[id(variables[k])] for k in paths}
        after = [with_values(part, [(p, scope.values[id(x.view(p))]) for p in places(part)]) for x, part in owned]
        state = after[0]
        if inner:
            state = state._replace(scalars=state.scalars | {INNER: dict(zip(inner, after[1:], strict=True))})
        return new, state


def _defined(cls: type) -> set[str]:
    """Return the names that the classes of a user define."""
    return {name for c in cls.__mro__ if not is_library(c) and c is not object for name in vars(c)}


def uncompiled(program: Any) -> Callable[..., Any]:
    """Return the step of a program as a function that runs operation by operation, Python's branches included."""

    def step(*args: Any, reduce: bool = True) -> Any:
        with jax.disable_jit():
            return program.bare_step(*args, reduce=reduce)

    return step
