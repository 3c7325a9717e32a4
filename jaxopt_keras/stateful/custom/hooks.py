"""A user-defined optimizer class as a core of the pipeline: its hooks are traced, so they run compiled.

There are three generations of hooks: Keras 3 has `update_step(gradient, variable, learning_rate)`; tf.keras 2.11 has
`update_step(gradient, variable)`; earlier versions have `_resource_apply_dense(grad, var)` and
`_resource_apply_sparse(grad, var, indices)`. A hook gets our variables themselves, and stand-ins for those of other
libraries, with the interface of ours and with TF's dtypes.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxopt_keras.engine.core import Core, Layout, Now, Slots
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.language.sparse import scatter_sum
from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.variable import ArrayLike


class Hooks(Core):
    """A core that runs the hooks of `optimizer` while its variables and state are mapped to traced values.

    `optimizer` provides `hook_variables(paths)`, `view(place)`, `hooks_running()` and the hooks. Slots and scalars are
    created by the user's code.
    """

    whole: ClassVar[bool] = True  # hooks may read every variable
    takes_rows: ClassVar[bool] = True
    any_slots = True

    __hash__ = None  # type: ignore[assignment]  # unhashable, so that its programs are not cached for other optimizers

    def __init__(self, optimizer: Any, rate: Any = 0.001) -> None:
        self.optimizer, self.rate = optimizer, rate

    def arrays(self) -> dict[str, Any]:
        rate = jnp.asarray(self.rate, jnp.result_type(float))
        return {"learning_rate": rate} | self.optimizer.hook_hyper()

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        paths = [leaf.path for leaf in layout.leaves]
        variables = self.optimizer.hook_variables(paths)
        values: dict[Any, Any] = {("count",): now.t.astype(jnp.int32) - 1}
        values |= {("hyperparams", name): getattr(x, "value", x) for name, x in now.hyper.items()}
        values |= {("scalars", name): x for name, x in scalars.items()}
        values |= {("slots", k, name): x for k, s in zip(paths, slots, strict=True) for name, x in s.items()}
        views = {place: self.optimizer.view(place) for place in values}
        scope = Scope([*variables, *views.values()], [*params, *values.values()])
        with self.optimizer.hooks_running(), scope.active():
            called = {k: (g, v) for k, g, v in zip(paths, grads, variables, strict=True) if g is not None}
            # In the order of registration: a tree of parameters is sorted.
            for path in sorted(called, key=self.optimizer._paths.index):
                self._call(*called[path], self.optimizer.view(("hyperparams", "learning_rate")).value)
        if scope.unmapped:
            names = [v.path for v in scope.unmapped.values()]
            raise ValueError(
                f"A hook of {type(self.optimizer).__name__} uses variables that the optimizer does not have: {names}. "
                "Create them with `add_variable`, `add_variable_from_reference` or `add_slot`."
            )
        new = {place: scope.values[id(v)] for place, v in views.items()}
        amounts = [
            None if g is None and id(v) not in scope.written else scope.values[id(v)] - p
            for g, v, p in zip(grads, variables, params, strict=True)
        ]
        slots = [{name: new["slots", k, name] for name in s} for k, s in zip(paths, slots, strict=True)]
        return amounts, slots, {name: new["scalars", name] for name in scalars}

    def _call(self, g: Any, variable: Any, rate: Any) -> None:
        """Call the hook of the optimizer's generation for one variable."""
        optimizer = self.optimizer
        if isinstance(g, Rows):
            if hasattr(optimizer, "_resource_apply_sparse"):
                return _call(optimizer._resource_apply_sparse, g.values, variable, g.indices)
            g = scatter_sum(g.values, g.indices, variable.shape)
        if hasattr(optimizer, "_resource_apply_dense"):
            _call(optimizer._resource_apply_dense, g, variable)
        elif hasattr(optimizer, "update_step"):
            _call(optimizer.update_step, g, variable, rate)
        else:
            raise NotImplementedError(
                f"{type(optimizer).__name__} needs `update_step(self, gradient, variable, learning_rate)`, or TF 2's "
                "`_resource_apply_dense(self, grad, var)`."
            )


def _call(hook: Callable[..., Any], *args: Any) -> None:
    """Call the hook with as many of `args` as it takes: generations differ in the last ones."""
    parameters = inspect.signature(hook).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    hook(*(args if variadic else args[: len(positional)]))


class StandIn(ArrayLike):
    """A variable of another library, with the interface of ours, for hooks. For TF 2's hooks it has TF's dtype."""

    def __init__(self, optimizer: Any, path: str) -> None:
        self.optimizer, self.path = optimizer, path
        self.name = path.rsplit("/", 1)[-1]
        self.trainable = True

    @property
    def dtype(self) -> Any:
        dtype = super().dtype
        return Tf2DType(dtype) if hasattr(self.optimizer, "_resource_apply_dense") else dtype

    def _raw_value(self) -> Any:
        return self.optimizer._handles[self.path].read()

    def _store(self, value: Any) -> None:
        self.optimizer._handles[self.path].write(value)

    def __reduce__(self) -> Any:
        return stand_in, (self.optimizer, self.path)


def stand_in(optimizer: Any, path: str) -> StandIn:
    """Return the stand-in for the variable at `path`. There is only one: a scope identifies variables by `id`."""
    stand_ins = optimizer.__dict__.setdefault("_stand_ins", {})
    if path not in stand_ins:
        stand_ins[path] = StandIn(optimizer, path)
        optimizer.__dict__.setdefault("_keys", {})[id(stand_ins[path])] = path
    return stand_ins[path]


class Tf2DType:
    """A dtype with TF's attribute `base_dtype`, which NumPy and JAX accept as a dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = self.base_dtype = jnp.dtype(dtype)
        self.name = self.dtype.name

    def __eq__(self, other: Any) -> bool:
        return self.dtype == getattr(other, "base_dtype", other)

    def __hash__(self) -> int:
        return hash(self.dtype)
