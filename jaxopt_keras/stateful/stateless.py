"""Steps as pure functions: of lists of arrays, for Keras's `stateless_apply`, and of arrays by path."""

from collections.abc import Sequence
from typing import Any

from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import read
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.validation import as_gradient, of_length, without_frozen
from jaxopt_keras.stateful.variable import as_array, value_of
from jaxopt_keras.stateful.weight_lists import cast_like


class Stateless(Transactions):
    """Steps that change neither variables nor the optimizer."""

    @locked
    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
        skip_gradients_aggregation: bool = False,
        *,
        loss: Any = None,
        weight: Any = None,
        flush: Any = None,
    ) -> tuple[list[Any], list[Any]]:
        """Compute one step as a pure function of lists of arrays, for use inside `jit`, `shard_map` or `pmap`.

        Args:
            optimizer_variables: the values of `variables`, in that order.
            grads: a gradient or None for each variable that the optimizer was built with.
            trainable_variables: the values of these variables.
            skip_gradients_aggregation: True if gradients are summed over `axis_name` already.
            loss, weight, flush: as in `apply_gradients`; they may be traced.

        Returns:
            (new trainable_variables, new optimizer_variables), as Keras returns them.

        Raises:
            TypeError: if an element is not numeric, or a weight or flush would have no effect. ValueError: if the
                optimizer is not built, or a list has the wrong length.
        """
        paths, views = self._paths, self._listed()
        if not paths:
            raise ValueError("`stateless_apply` needs a built optimizer. Call `build(variables)` first.")
        if self._unbound and isinstance(self._rule, Hooks):
            raise ValueError(
                f"`stateless_apply` needs the variables {[*self._unbound]}. Call `build(variables)` first."
            )
        optimizer_variables = of_length("optimizer_variables", optimizer_variables, len(views))
        grads = of_length("grads", grads, len(paths))
        variables = of_length("trainable_variables", trainable_variables, len(paths))
        state = self._state_with(views, cast_like(views, optimizer_variables))
        params = {path: as_array(v, "trainable_variables") for path, v in zip(paths, variables, strict=True)}
        grads = without_frozen(grads, [self._handles.get(path) for path in paths], stacklevel=2)
        given = {path: g if g is None else as_gradient(value_of(g), path) for path, g in zip(paths, grads, strict=True)}
        others = {"loss": loss, "weight": weight, "flush": flush}
        new, state = self._pure_step(given, state, params, not skip_gradients_aggregation, **others)
        states = self._states_of(state)
        return [new[path] for path in paths], [read(states[id(view.optimizer)], view.place) for view in views]
