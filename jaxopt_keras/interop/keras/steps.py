"""The step methods of an adapter: `apply_gradients`, `apply`, `stateless_apply`."""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import keras
from keras.src.backend import in_stateless_scope

from jaxopt_keras.interop.keras.state import Layout, StateVariable
from jaxopt_keras.stateful.validation import as_gradient, pairs


class Steps:
    """Steps of an adapter: each runs the step of the wrapped optimizer."""

    wrapped: Any  # the optimizer
    built: bool
    build: Callable[[Sequence[Any]], None]
    _layout: Layout
    _iterations: StateVariable
    _variables: list[StateVariable]
    _trainable_variables: list[Any]
    _check_present: Callable[[], None]
    _check_variables_are_known: Callable[[list[Any]], None]  # this and the next are defined by Keras
    _filter_empty_gradients: Callable[[Any, Any], tuple[list[Any], list[Any]]]

    def apply_gradients(self, grads_and_vars: Iterable[Any]) -> Any:
        self.apply(*pairs(grads_and_vars))
        return self._iterations

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes one step as one compiled call, which donates the state."""
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "`apply(grads)` without variables needs a built optimizer. Call `build(variables)` first."
                )
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"`grads` must hold one gradient for each variable. Received: {len(grads)} gradients for "
                f"{len(variables)} variables"
            )
        self.build(variables)
        self._check_variables_are_known(variables)
        grads, variables = self._filter_empty_gradients(grads, variables)
        if in_stateless_scope():
            self._apply_within_scope({id(v): g for g, v in zip(grads, variables, strict=True)})
            return
        self._check_present()
        for v in self._variables:
            v.copy_if_referenced()
        known = [id(v) in self.wrapped._keys for v in variables]
        if any(known):
            self.wrapped.apply([*compress(grads, known)], [*compress(variables, known)])
        for g, v, is_known in zip(grads, variables, known, strict=True):
            if not is_known:
                v.assign(g)

    def _apply_within_scope(self, grads: dict[int, Any]) -> None:
        values, variables = [v.value for v in self._variables], self._trainable_variables
        new, state = self._stepped(values, [grads.get(id(v)) for v in variables], [v.value for v in variables])
        for v, x in [*zip(variables, new, strict=True), *zip(self._variables, state, strict=True)]:
            v.assign(x)

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Makes one step as a pure function; returns (new trainable variables, new optimizer variables).

        Raises:
            ValueError: if the optimizer is not built, a list has a wrong length, or all gradients are None.
        """
        if not self.built:
            raise ValueError("`stateless_apply` needs a built optimizer. Call `build(trainable_variables)` first.")
        for name, given, length in (
            ("optimizer_variables", optimizer_variables, len(self._variables)),
            ("grads", grads, len(self._trainable_variables)),
            ("trainable_variables", trainable_variables, len(self._trainable_variables)),
        ):
            if len(given) != length:
                raise ValueError(f"Argument `{name}` must be a list of {length} arrays. Received: {len(given)}")
        if grads:  # a model may have no variables
            self._filter_empty_gradients(grads, self._trainable_variables)
        return self._stepped(optimizer_variables, grads, trainable_variables)

    def _stepped(self, values: Sequence[Any], grads: Sequence[Any], params: Sequence[Any]) -> tuple[Any, Any]:
        keys = [self.wrapped._keys.get(id(v)) for v in self._trainable_variables]  # None: set to its gradient
        state = self._layout.assemble([array_of(v) for v in values])
        arrays = {k: array_of(p) for k, p in zip(keys, params, strict=True) if k is not None}
        given = {
            k: as_gradient(array_of(g), k) for k, g in zip(keys, grads, strict=True) if k in arrays and g is not None
        }
        if given:
            arrays, state = self.wrapped._pure_step(given, state, arrays, reduce=True)
        overwritten = [array_of(p if g is None else g) for g, p in zip(grads, params, strict=True)]
        new = [x if k is None else arrays[k] for k, x in zip(keys, overwritten, strict=True)]
        return new, self._layout.arrays(state)


def array_of(x: Any) -> Any:
    """The value of a Keras variable, also inside a stateless scope; other objects unchanged."""
    return x.value if isinstance(x, keras.Variable) else x
