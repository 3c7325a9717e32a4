"""The parts of a step that a user's class may override, called in Keras's order, and what they do by default."""

import contextvars
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Layout, Leaf, Now, cast
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.stages.clip import clip
from jaxopt_keras.language.numerics import real_dtype
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.language.sparse import IndexedSlices, scatter_sum
from jaxopt_keras.stateful.custom.overrides import CLIPS, DECAYS, RATES, accepts, overridden, overrides
from jaxopt_keras.stateful.custom.stand_ins import as_tensor, tensors_of
from jaxopt_keras.stateful.state_views import OPTION_SLOTS, RATE, STEP, slots_of
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import value_of

_step: contextvars.ContextVar[Any] = contextvars.ContextVar("step", default=None)
active_step = _step.get
"""Return the number of the step whose hooks run, and a counter of its random draws; None outside of hooks."""

TREEDEF = jax.tree.structure(0)
CLIP_OPTIONS = ("clipnorm", "clipvalue", "global_clipnorm")


class Steps(Transactions):
    """The parts of a step of a class with hooks. Variables and state are mapped to the step's values while they run."""

    _traced: Any  # the `Now` and the scalars at the start of the step that runs

    # --- the parts --------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # classes override it with or without the rate

        def update_step(self, *args: Any, **kwargs: Any) -> None: ...

    else:

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any = None) -> None:
            """Update one variable: the part that most classes override. A named class runs its rule.

            Args:
                gradient: the gradient, after clipping.
                variable: the variable. One of another optimizer's hooks works too, if `build` has been called with it.
                learning_rate: the rate of this step; None: the optimizer's own.
            """
            if not isinstance(self._rule, Rule):
                raise NotImplementedError(
                    f"{type(self).__name__} needs `update_step(self, gradient, variable, learning_rate)`, or TF 2's "
                    "`_resource_apply_dense(self, grad, var)`."
                )
            self._run_rule(
                value_of(gradient), variable, self._current_rate() if learning_rate is None else learning_rate
            )

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Update all variables that have a gradient, in the order of `build`."""
        for g, v in zip(grads, trainable_variables, strict=True):
            self._update_one(g, v, learning_rate, {})

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Clip the gradients as the options `clipnorm`, `clipvalue` and `global_clipnorm` say."""
        if self.clipnorm is not None and overrides(type(self), "_clip_by_norm"):
            return [g if g is None else self._clip_by_norm(g) for g in grads]
        hyper = {name: jnp.asarray(x) for name in CLIP_OPTIONS if (x := getattr(self, name)) is not None}
        return clip([value_of(g) for g in grads], hyper)

    def _clip_by_norm(self, values: Any, axes: Any = None) -> Any:
        """Clip one gradient to the norm `clipnorm`."""
        norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(value_of(values))), axis=axes, keepdims=axes is not None))
        return value_of(values) * jnp.minimum(1.0, self.clipnorm / jnp.where(norm > 0, norm, 1.0))

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Subtract `learning_rate * weight_decay * variable` from each variable that `_use_weight_decay` accepts."""
        if self.weight_decay is None:
            return
        for v in variables:
            if self._use_weight_decay(v):
                v.assign_sub(v.value * (self.weight_decay * self._current_rate()))

    def _use_weight_decay(self, variable: Any) -> bool:
        """Whether a variable decays: unless `exclude_from_weight_decay` excludes it."""
        key = self._key(variable)
        return not self._excludes(self._options, key, self._handles[key].variable)

    def _get_current_learning_rate(self) -> Any:
        """Return the rate of this step."""
        return value_of(self.view(RATE)) if self._in_hooks else self._hyper(self._kept)["learning_rate"]

    # --- TF 2 -------------------------------------------------------------------------------------------------------

    def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
        """Return the gradients before they are summed over replicas: there is one replica here."""
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: Any) -> Any:
        """Return the gradients after `gradient_aggregator`, a function of (gradient, variable) pairs."""
        return grads_and_vars if self.gradient_aggregator is None else self.gradient_aggregator(grads_and_vars)

    def _transform_gradients(self, grads_and_vars: Any) -> Any:
        """Clip the gradients, and call `gradient_transformers`, functions of (gradient, variable) pairs."""
        grads, variables = zip(*grads_and_vars, strict=True)
        pairs = [*zip(self._clip_gradients(grads), variables, strict=True)]
        for transform in self.gradient_transformers:
            pairs = transform(pairs)
        return pairs

    def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> None:
        """Update one variable, as `update_step` does."""
        self.update_step(grad, var)

    def _resource_apply_sparse(self, grad: Any, var: Any, indices: Any, apply_state: Any = None) -> None:
        """Update one variable by distinct rows of a gradient, as by the equal dense gradient."""
        self._resource_apply_dense(scatter_sum(value_of(grad), indices, tuple(var.shape)), var)

    def _resource_apply_sparse_duplicate_indices(self, grad: Any, var: Any, indices: Any, **kwargs: Any) -> None:
        """Update one variable by rows of a gradient. They are distinct already."""
        hook = self._resource_apply_sparse
        hook(grad, var, indices, **{k: x for k, x in kwargs.items() if accepts(hook, k)})

    # --- running them -----------------------------------------------------------------------------------------------

    def run_step(self, grads: list[Any], variables: list[Any]) -> None:
        """Call the parts of a step in Keras's order. What does not depend on arrays of the step is computed at once."""
        token = _step.set((value_of(self.view(STEP)), itertools.count()))
        try:
            with jax.ensure_compile_time_eval(), tensors_of(self):
                self._run_parts(grads, variables)
        finally:
            _step.reset(token)

    def _run_parts(self, grads: list[Any], variables: list[Any]) -> None:
        cls = type(self)
        state = self._prepare(variables) if overridden(cls, ("_prepare", "_prepare_local")) else {}
        if self._clips_in_hooks():
            grads = dense(grads, variables)
            if overridden(cls, CLIPS[2:]) or self.gradient_transformers or self.gradient_aggregator:
                pairs = self._transform_unaggregated_gradients([*zip(grads, variables, strict=True)])
                pairs = self._transform_gradients(self._aggregate_gradients(pairs))
                grads, variables = [g for g, _ in pairs], [v for _, v in pairs]
            else:
                grads = list(self._clip_gradients([as_tensor(g) for g in grads]))
        if overridden(cls, DECAYS):
            self._apply_weight_decay(variables)
        rate = as_tensor(self._current_rate())
        if overrides(cls, "_backend_update_step"):
            self._backend_update_step([as_tensor(g) for g in dense(grads, variables)], variables, rate)
        else:
            for g, v in zip(grads, variables, strict=True):
                self._update_one(g, v, rate, state)

    def _clips_in_hooks(self) -> bool:
        """Whether gradients are clipped in the hooks, in the place of the pipeline."""
        return bool(overridden(type(self), CLIPS) or self.gradient_transformers or self.gradient_aggregator)

    def _own_stages(self) -> dict[str, None]:
        """Return the options that the hooks implement, in the place of the pipeline."""
        own = CLIP_OPTIONS if self._clips_in_hooks() else ()
        return dict.fromkeys((*own, "weight_decay") if overridden(type(self), DECAYS) else own)

    def _current_rate(self) -> Any:
        """Return the rate of this step, from the method that the class overrides."""
        current, of_tf2, attribute = (overrides(type(self), name) for name in RATES)
        if attribute and not overrides(type(self), "_resource_apply_dense"):  # Keras passes the attribute
            return value_of(self.learning_rate)
        if of_tf2 and not current:
            return value_of(self._decayed_lr(jnp.result_type(float)))
        return value_of(self._get_current_learning_rate())

    def _update_one(self, g: Any, variable: Any, rate: Any, state: Any) -> None:
        """Call the hook of the optimizer's generation for one variable."""
        cls: Any = type(self)
        sparse = overridden(cls, ("_resource_apply_sparse_duplicate_indices", "_resource_apply_sparse"))
        if isinstance(g, (Rows, IndexedSlices)):
            if sparse:
                hook = getattr(self, sparse)
                return _call(hook, as_tensor(g.values), variable, g.indices, apply_state=state)
            g = scatter_sum(g.values, g.indices, tuple(variable.shape))
        g = as_tensor(g)
        if overrides(cls, "_resource_apply_dense"):
            return _call(self._resource_apply_dense, g, variable, apply_state=state)
        return _call(self.update_step, g, variable, rate)

    def _run_rule(self, g: Any, variable: Any, rate: Any) -> None:
        """Run the rule on one variable, and assign the results."""
        now, scalars = self._traced
        key = self._key(variable)
        names = slots_of(self._state, key).keys() - {*OPTION_SLOTS}
        p = value_of(variable)
        dtype = real_dtype(g.dtype)
        slots = {name: value_of(self.view(("slots", key, name))) for name in names}
        t = value_of(self.view(STEP)) if self._iterations_from is None else value_of(self._iterations_from)
        hyper = now | {"learning_rate": rate}
        clock = cast(Now(t.astype(dtype) + 1, jnp.asarray(rate, dtype), hyper.get("weight_decay"), hyper), dtype)
        layout = Layout(TREEDEF, (Leaf(key, self._use_weight_decay(variable)),), {})
        core = Leafwise(self._rule.skeleton())
        (step,), (new,), later = core.update(layout, [g], [p], [slots], scalars, clock)
        for name in names & new.keys():
            self.view(("slots", key, name)).assign(new[name])
        for name, x in later.items():
            self.view(("scalars", name)).assign(x)
        variable.assign(p + step)


def dense(grads: list[Any], variables: list[Any]) -> list[Any]:
    """Return gradients with dense arrays in the place of rows."""
    pairs = zip(grads, variables, strict=True)
    return [scatter_sum(*g, tuple(v.shape)) if isinstance(g, Rows) else g for g, v in pairs]


def _call(hook: Callable[..., Any], *args: Any, **keywords: Any) -> None:
    """Call the hook with as many of the arguments as it takes: generations differ in the last ones."""
    parameters = inspect.signature(hook).parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    taken = args if variadic else args[: len(positional)]
    hook(*taken, **{name: x for name, x in keywords.items() if name in parameters})
