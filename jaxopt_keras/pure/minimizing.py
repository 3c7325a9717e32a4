"""A step down a loss function: its gradient and the update as one compiled program."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxopt_keras.engine import second as engine
from jaxopt_keras.engine.compiled import call_donating
from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.given import FLUSH, FUNCTION, LOSS, WEIGHT, refuse_unused
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.pure.extra import plain_options, static

P = TypeVar("P")


class Minimizing:
    """The method of a kernel that is given a loss function in the place of gradients."""

    program: Program
    compiled: Any
    current: Any
    _called: Any

    def minimize(
        self,
        loss: Any,
        params: P,
        state: State,
        *args: Any,
        second: Any = None,
        donate: bool = True,
        weight: Any = None,
        flush: Any = None,
    ) -> tuple[P, State, jax.Array]:
        """One step down `loss(params, *args)`, whose gradients it takes itself. One compiled program.

        It works for every kernel, and gives those that need more than gradients (SAM, L-BFGS, Polyak steps) all that
        they need. Under a loss scale it scales the loss.

        Args:
            loss: a function of the parameters and of `args` that returns one float. It is a part of the program: pass
                the same function each time, and what changes, such as the batch, in `args`.
            params, state, donate: as in `step`.
            *args: pytrees of arrays.
            second: the loss function of the second gradient, of the same arguments, where it is another one (Sophia-G).
                Default: None, it is `loss`.
            weight, flush: as in `step`.

        Returns:
            New `params` and `state`, and the loss before the step.

        Raises:
            TypeError: if `loss` is no function, or returns something else than one float. Others: as `step`.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel = jk.sam(jk.sgd(0.25), rho=0.5)
        >>> params, state = jnp.array([2.0]), kernel.init(jnp.array([2.0]))
        >>> params, state, value = kernel.minimize(lambda p, x: jnp.sum(x * p**2), params, state, jnp.array(1.0))
        >>> params.tolist(), float(value)
        ([0.75], 4.0)
        """
        for name, function in (("loss", loss), ("second", second)):
            if not callable(function) and (function is not None or name == "loss"):
                raise TypeError(f"`{name}` must be a function of the parameters. Received: {name}={function!r}")
        given = {name: x for name, x in ((WEIGHT, weight), (FLUSH, flush)) if x is not None}
        refuse_unused(plain_options(self.program), given)
        hyper = self.program.offered(self.current(state), given)
        plain, donating = self._minimizing()
        run = functools.partial(call_donating, donating, plain) if donate else plain
        scale = self.program.loss_scale(state)
        functions = static(loss, self.program), static(loss if second is None else second, self.program)
        call = functions, args, None if scale is None else jnp.copy(scale)  # the state with the scale is donated
        (params, value), state = self._called(run, params, state, call, hyper, params=params, state=state)
        return params, state, value

    def _minimizing(self) -> tuple[Any, Any]:
        """The compiled step, without and with donation."""
        others = self.compiled.others
        if "minimize" not in others:
            step = functools.partial(_minimized, self.compiled.program)
            others["minimize"] = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
        return others["minimize"]


def _minimized(program: Program, params: Any, state: State, call: Any, hyper: Any) -> Any:
    """Compute `minimize` for `call`: the two loss functions, their arguments, and the scale of the loss or None."""
    functions, args, scale = call
    first, other = (engine.of_values(Partial(_scaled, loss, args, scale), {}) for loss in functions)
    value, grads = engine.at(first, params)
    hyper = program.offered(hyper, {LOSS: value, FUNCTION: other})
    params, state = program.step(params, state, grads, hyper)
    return (params, value if scale is None else value / scale.astype(value.dtype)), state


def _scaled(loss: Any, args: Any, scale: Any, params: Any) -> Any:
    """Return the loss times the scale, in float32 at least."""
    value = engine.checked(loss(params, *args))
    if scale is None:
        return value
    value = value.astype(compute_dtype(value.dtype))
    return value * scale.astype(value.dtype)
