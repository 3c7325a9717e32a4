"""Flax: an `nnx.Optimizer` and a linen `TrainState` that make their steps by `Kernel.step`.

Flax's own classes take a kernel as an optax transformation, and add its amounts with `optax.apply_updates`, which
rounds to the parameter's dtype. The classes here call `Kernel.step`, which is one pass over memory. Only `Kernel.step`
applies master weights and stochastic rounding exactly to 16-bit parameters.

>>> import jax.numpy as jnp, jaxopt_keras as jk
>>> from flax import nnx
>>> from jaxopt_keras.interop.flax import Optimizer
>>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
>>> optimizer = Optimizer(model, jk.adamw(1e-3, master_weights="bf16+16"))
>>> @nnx.jit
... def train_step(model, optimizer, x):
...     loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
...     optimizer.update(model, grads)
...     return loss
>>> losses = [float(train_step(model, optimizer, jnp.ones((4, 2)))) for _ in range(3)]
>>> losses[2] < losses[0], int(optimizer.state.count)
(True, 3)
"""

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.optional import missing
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.pure.arguments import check_kernel
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.signals import uninterrupted

try:
    from flax import nnx
    from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
    from flax.training import train_state
except ImportError as error:
    raise missing("flax", "`jaxopt_keras.interop.flax`", "flax") from error

Model = TypeVar("Model")


class Optimizer(nnx.Optimizer[Model]):
    """An `nnx.Optimizer` that makes its steps by `Kernel.step`.

    Args:
        model: an `nnx.Module`.
        tx: a kernel.
        wrt: the variables of the model to update. Default: `nnx.Param`.
        graph: as in `nnx.Optimizer`.

    Patterns (of decay, groups, constraints) are searched for in paths such as `layers/0/kernel`. A slot with the shape
    of its parameter gets the parameter's metadata (sharding names).

    Raises:
        TypeError: if `tx` is no kernel.
    """

    tx: Kernel

    def __init__(self, model: Model, tx: Kernel, *, wrt: Any = nnx.Param, graph: bool | None = None) -> None:
        kernel = check_kernel("tx", tx)
        # nnx calls only `init`, although its annotation demands an optax class.
        tx_of_variables: Any = SimpleNamespace(init=partial(_init, kernel))
        super().__init__(model, tx_of_variables, wrt=wrt, graph=graph)
        self.tx = kernel

    # Positional only, unlike in nnx, so that an extra argument may be named `grads` or `model`.
    def update(self, model: Model, grads: Any, /, **extra: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step: updates the variables of `model` in place.

        Args:
            model: the module to update.
            grads: the result of `nnx.grad`, with respect to the same variables.
            **extra: for an optax transformation that takes more than gradients; see `Kernel.step`.
        """
        params, grads = (nnx.as_pure(nnx.state(x, self.wrt, graph=self.graph)) for x in (model, grads))
        extra = {name: nnx.as_pure(x) for name, x in extra.items()}
        # Arrays may be shared (a clone of the model, a tied weight), so only `nnx.jit` can donate them.
        params, state = self.tx.step(params, self.state, grads, donate=False, **extra)
        with uninterrupted():
            nnx.update(model, params)
            self.set_state(state)
            self.step[...] += 1

    @property
    def state(self) -> State:
        """The kernel's state, as plain arrays."""
        return nnx.as_pure(self.opt_state)

    def set_state(self, state: State) -> None:
        """Replaces the state: by a restored one, or by one with other injected hyperparameters.

        With `inject_hyperparams`: `optimizer.set_state(kernel.replaced(optimizer.state, learning_rate=...))`.

        Raises:
            ValueError: if `state` is no state of this kernel for these parameters.
        """
        new, old = (_shapes(x) for x in (state, self.state))
        if new != old:
            raise ValueError(
                "`state` must be a state of this optimizer's kernel, for these parameters. It differs in: "
                f"{sorted(name for name, _ in new ^ old)}"
            )
        nnx.update(self.opt_state, nnx.state(state, graph=self.graph))

    def averaged(self, model: Model) -> Any:
        """The values to evaluate (`Kernel.averaged`), for `nnx.update(evaluated_model, ...)`."""
        return self.tx.averaged(nnx.as_pure(nnx.state(model, self.wrt, graph=self.graph)), self.state)


def _shapes(state: Any) -> set[tuple[str, tuple[int, ...]]]:
    keyed = jax.tree_util.tree_leaves_with_path(nnx.as_pure(state))
    return {(path_of(key), jnp.shape(x)) for key, x in keyed}


def _init(kernel: Kernel, variables: Any) -> State:
    """The initial state for variables: plain paths, and the parameter's metadata for each slot."""
    state = kernel.init(nnx.as_pure(variables))
    if isinstance(state.slots, Packed):  # on one device, so sharding names have no use
        return state
    like = dict.fromkeys(state.slots, variables)
    return state._replace(slots=jax.tree.map(_with_metadata, like, state.slots, is_leaf=_is_variable))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _with_metadata(variable: Any, slot: Any) -> Any:
    return variable.replace(slot) if getattr(slot, "shape", None) == variable.get_value().shape else slot


def grads_and_vars(grads: Any, model: Any, *, wrt: Any = nnx.Param) -> list[tuple[Any, nnx.Variable]]:
    """Pairs of gradients and variables for the stateful face, from the result of `nnx.grad` for `model`.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> model, optimizer = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jk.Adam(0.1)
    >>> grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2))) ** 2))(model)
    >>> int(optimizer.apply_gradients(grads_and_vars(grads, model)))
    1
    """
    found, variables = (jax.tree.leaves(nnx.state(x, wrt), is_leaf=_is_variable) for x in (grads, model))
    return [(nnx.as_pure(g), v) for g, v in zip(found, variables, strict=True)]


class TrainState(train_state.TrainState):
    """A linen `TrainState` that makes its steps by `Kernel.step`.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=jk.sgd(0.5))
    >>> state = state.apply_gradients(grads={"w": jnp.ones(2)})
    >>> state.params["w"].tolist(), int(state.step)
    ([0.5, 0.5], 1)
    """

    @classmethod
    def create(cls, *, apply_fn: Any, params: Any, tx: Any, **fields: Any) -> "TrainState":
        """Makes the initial state.

        Args:
            apply_fn: the module's `apply`; it is only stored.
            params: a pytree of arrays; `tx` updates all of them.
            tx: a kernel.
            **fields: the fields of a subclass.

        Raises:
            TypeError: if `tx` is no kernel. ValueError: for parameters that are set to their gradients (fp8 layers).
        """
        if isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params:
            raise ValueError(
                f"`params` must not hold `{OVERWRITE_WITH_GRADIENT}` (fp8 layers). Received: keys {sorted(params)}. "
                "Use flax's `TrainState`, which takes kernels too."
            )
        return super().create(apply_fn=apply_fn, params=params, tx=check_kernel("tx", tx), **fields)

    def apply_gradients(self, *, grads: Any, **fields: Any) -> "TrainState":
        """Returns the state after one step, with `fields` replaced. Donate the old state in your `jit`."""
        kernel: Any = self.tx
        params, opt_state = kernel.step(self.params, self.opt_state, grads, donate=False)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **fields)
