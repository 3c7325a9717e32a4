"""Flax: an `nnx.Optimizer` and a linen `TrainState` whose kernel writes the parameters itself.

Both of flax's own take any kernel as they take an optax transformation, and add its amounts with `optax.apply_updates`,
which rounds to the parameter's dtype. Those here call `Kernel.step`: it is one pass over memory, and the only way in
which master weights and stochastic rounding reach parameters of 16 bits exactly.

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
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.pure.kernel import Kernel

Model = TypeVar("Model")


def _kernel(tx: Any) -> Kernel:
    if not isinstance(tx, Kernel):
        raise TypeError(
            f"`tx` must be a kernel, such as `jaxopt_keras.adam()`. Received: tx={tx!r}. `Kernel.from_optax(tx)` makes "
            "one of an optax transformation."
        )
    return tx


class Optimizer(nnx.Optimizer[Model]):
    """An `nnx.Optimizer` that makes its steps by `Kernel.step`.

    Args:
        model: an `nnx.Module`.
        tx: a kernel.
        wrt: which variables of the model it updates.
        graph: as in `nnx.Optimizer`.

    Patterns (of decay, groups, constraints) see paths such as `layers/0/kernel`. A slot with its parameter's shape
    takes over the parameter's metadata (sharding names).

    Raises:
        TypeError: if `tx` is no kernel.
    """

    tx: Kernel

    def __init__(self, model: Model, tx: Kernel, *, wrt: Any = nnx.Param, graph: bool | None = None) -> None:
        kernel = _kernel(tx)
        # nnx asks only for `init`, and its annotation for a class of optax's.
        super().__init__(model, _Described(kernel), wrt=wrt, graph=graph)  # pyright: ignore[reportArgumentType]
        self.tx = kernel

    # Positional only, unlike nnx's own: an extra argument may then be called `grads` or `model`.
    def update(self, model: Model, grads: Any, /, **extra: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step: new values for the variables of `model`, in place. There are no updates to return.

        Args:
            model: the module whose variables move.
            grads: of `nnx.grad`, with respect to the same variables.
            **extra: for an optax transformation that takes more than gradients; see `Kernel.step`.
        """
        params, grads = (nnx.as_pure(nnx.state(x, self.wrt, graph=self.graph)) for x in (model, grads))
        extra = {name: nnx.as_pure(x) for name, x in extra.items()}
        # Arrays may be shared (a clone of the model, a tied weight), so donating them is left to `nnx.jit`.
        params, state = self.tx.step(params, self.state, grads, donate=False, **extra)
        nnx.update(model, params)
        self.set_state(state)
        self.step[...] += 1

    @property
    def state(self) -> State:
        """The kernel's state, as plain arrays."""
        return nnx.as_pure(self.opt_state)

    def set_state(self, state: State) -> None:
        """Takes another state of the same kernel: a restored one, or one with other injected hyperparameters.

        Those are of a kernel with `inject_hyperparams`: `optimizer.set_state(kernel.replaced(optimizer.state, ...))`.

        Raises:
            ValueError: if it is no state of this kernel, for these parameters.
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


class _Described:
    """Makes a kernel's first state of variables: plain paths, and each slot with its parameter's metadata."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def init(self, variables: Any) -> State:
        state = self.kernel.init(nnx.as_pure(variables))
        if isinstance(state.slots, Packed):  # on one device
            return state
        described = lambda tree: jax.tree.map(_described, variables, tree, is_leaf=_is_variable)
        return state._replace(slots={name: described(tree) for name, tree in state.slots.items()})


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _described(variable: Any, slot: Any) -> Any:
    return variable.replace(slot) if getattr(slot, "shape", None) == variable.get_value().shape else slot


def grads_and_vars(grads: Any, model: Any, *, wrt: Any = nnx.Param) -> list[tuple[Any, nnx.Variable]]:
    """The pairs that the stateful face takes, of what `nnx.grad` gave for `model`.

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
        """The state to start with.

        Args:
            apply_fn: of the module; only kept.
            params: a pytree of arrays, all of which `tx` moves.
            tx: a kernel.
            **fields: of a subclass.

        Raises:
            TypeError: if `tx` is no kernel. ValueError: for parameters that gradients overwrite (of fp8 layers).
        """
        if isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params:
            raise ValueError(
                f"`params` must not hold `{OVERWRITE_WITH_GRADIENT}` (fp8 layers). Received: keys {sorted(params)}. "
                "Use flax's `TrainState`, which takes kernels too."
            )
        return super().create(apply_fn=apply_fn, params=params, tx=_kernel(tx), **fields)

    def apply_gradients(self, *, grads: Any, **fields: Any) -> "TrainState":
        """The state after one step; `fields` are replaced besides. Donate it to the `jit` around."""
        kernel: Any = self.tx
        params, opt_state = kernel.step(self.params, self.opt_state, grads, donate=False)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **fields)
