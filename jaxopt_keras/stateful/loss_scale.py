"""`LossScaleOptimizer`: dynamic loss scaling for the stateful face."""

from typing import Any, ClassVar

from jaxopt_keras.engine.programs.loss_scaled import GOOD, SCALE, LossScaled, first_scalars
from jaxopt_keras.engine.programs.offloaded import outermost
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.pure.loss_scale import HIGHEST, LOWEST, checked_settings
from jaxopt_keras.stateful.call import Call
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.serialization import WRAPPERS, deserialize, serialize
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.transactions import OPTIONS
from jaxopt_keras.stateful.variable import as_array, check
from jaxopt_keras.stateful.wrappers import Wrapper


class LossScaleOptimizer(Wrapper):
    """Dynamic loss scaling around an optimizer, for float16: the scale of the loss is adjusted during training.

    The step divides gradients by the scale. If they are not finite, the step is skipped, `skipped` is incremented and
    the scale is halved. After `dynamic_growth_steps` finite calls in a row the scale is doubled.

    Args:
        inner_optimizer: the optimizer that gets the unscaled gradients. Its `loss_scale_factor` is set to None.
        initial_scale: scale at the start.
        dynamic_growth_steps: finite calls from one doubling to the next, at least 1.
        name: name of the optimizer; None: a name made from the class.
        lowest_scale, highest_scale: bounds of the scale.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> w = jk.Variable([1.0, 2.0], dtype="float16", name="w")
    >>> optimizer = jk.LossScaleOptimizer(jk.SGD(0.5), initial_scale=1024.0)
    >>> int(optimizer.minimize(lambda: optimizer.scale_loss(jnp.sum(w * w)), [w])), w.numpy().tolist()
    (1, [0.0, 0.0])

    Raises:
        TypeError: if `inner_optimizer` is not an optimizer, or a setting is not a number. ValueError: if a setting is
            out of its range, or `inner_optimizer` scales the loss itself.
    """

    _listed_scalars: ClassVar = (GOOD, SCALE)

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        *,
        lowest_scale: float = LOWEST,
        highest_scale: float = HIGHEST,
    ) -> None:
        check(isinstance(inner_optimizer, Optimizer), "inner_optimizer", inner_optimizer, "an `Optimizer`")
        if isinstance(inner_optimizer, LossScaleOptimizer):
            raise ValueError(f"`inner_optimizer` scales the loss already. Received: {inner_optimizer!r}")
        settings = checked_settings(initial_scale, dynamic_growth_steps, lowest_scale, highest_scale)
        inner_optimizer.loss_scale_factor = None
        self._wrap(Options(name=name), [inner_optimizer], _settings=settings)

    _settings: tuple[float, int, float, float]

    def _first_scalars(self) -> dict[str, Any]:
        return first_scalars(self.initial_scale)

    @property
    def inner_optimizer(self) -> Optimizer:
        return self._inner[0]

    @property
    def dynamic_scale(self) -> View:
        """Scale of the next loss, as an assignable view."""
        return self.view(("scalars", SCALE))

    @property
    def step_counter(self) -> View:
        """Finite calls since the scale last changed, as an assignable view."""
        return self.view(("scalars", GOOD))

    @property
    def initial_scale(self) -> float:
        return self._settings[0]

    @property
    def dynamic_growth_steps(self) -> int:
        return self._settings[1]

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times the present scale, in float32 at least. Compute gradients of this."""
        return scaled(loss, self.dynamic_scale.value)

    @property
    def iterations(self) -> View:
        """Number of updates of the inner optimizer."""
        return self.inner_optimizer.iterations

    @iterations.setter
    def iterations(self, value: Any) -> None:
        self.inner_optimizer.iterations = value

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    lr = _learning_rate = learning_rate

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONS and "_inner" in self.__dict__:
            return getattr(self.inner_optimizer, name)
        return super().__getattr__(name)

    def _must_unpack(self, buffer: Buffer) -> bool:
        return self.inner_optimizer._must_unpack(buffer)

    def _groups(self) -> dict[str, Optimizer]:
        return self.inner_optimizer._groups()

    def _program(self, programs: list[Any], guards: Any) -> Any:
        return outermost(programs[0], lambda inner: LossScaled(inner, *self._settings))

    def _call(self, kernel: Kernel, own: State, calls: dict[int, Call]) -> Call:
        inner = calls[0]
        return Call(kernel, inner.params, _with_scalars(own, inner.state), inner.grads, inner.hyper, calls)

    def _split(self, call: Call, own: State, params: Any, result: State) -> tuple[State, list[Any], list[State]]:
        own, inner = _without_scalars(own, result, call.inner[0].state.scalars)
        return own, [params], [inner]

    def _joined(self, state: State) -> State:
        inner = self.inner_optimizer._joined(state.slots[0])
        return _with_scalars(state, inner)

    def _separated(self, state: State) -> State:
        inner = self.inner_optimizer
        own, part = _without_scalars(self._first_state(), state, inner._joined(inner._state).scalars)
        return own._replace(slots=[inner._separated(part)])

    def get_config(self) -> dict[str, Any]:
        initial, growth, lowest, highest = self._settings
        config = {"name": self.name, "inner_optimizer": serialize(self.inner_optimizer), "initial_scale": initial}
        config["dynamic_growth_steps"] = growth
        extras = {"lowest_scale": (lowest, LOWEST), "highest_scale": (highest, HIGHEST)}
        return config | {n: value for n, (value, default) in extras.items() if value != default}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        inner = deserialize(config["inner_optimizer"], custom_objects)
        arguments: dict[str, Any] = config | {"inner_optimizer": inner}
        return cls(**arguments)


def _with_scalars(own: State, inner: State) -> State:
    """Return the state of `LossScaled`: the inner state, with the scalars of the wrapper.

    Both may have a counter of skipped calls. Then the inner one counts.
    """
    return inner._replace(scalars=own.scalars | inner.scalars)


def _without_scalars(own: State, state: State, inner: Any) -> tuple[State, State]:
    """Split a state of `LossScaled`; `inner` has the names of the inner scalars. The inverse of `_with_scalars`."""
    scalars = {n: x if n in inner else state.scalars[n] for n, x in own.scalars.items()}
    return own._replace(scalars=scalars), state._replace(scalars={n: state.scalars[n] for n in inner})


def scaled(loss: Any, scale: Any) -> Any:
    """Return the loss times the scale, in float32 at least."""
    loss = as_array(loss, "loss")
    loss = loss.astype(compute_dtype(loss.dtype))
    return loss * scale.astype(loss.dtype)


WRAPPERS["LossScaleOptimizer"] = LossScaleOptimizer
