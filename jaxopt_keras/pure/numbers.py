"""The numbers of a kernel: rates, betas and decays, which a state may hold."""

import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import Complemented
from jaxopt_keras.pure import injection


class Numbers:
    """The methods of a kernel that read and replace numbers."""

    program: Program
    _arrays: dict[Any, dict[str, Any]]  # the hyperparameters, by the default float dtype

    def replace(self, **numbers: Any) -> Self:
        """The kernel with other hyperparameters. It needs no new compilation.

        With groups, every group that has all of the names gets the values. Injected ones stay those of the state.

        >>> import jaxopt_keras as jk
        >>> jk.adam(1e-3).replace(learning_rate=1e-4) == jk.adam(1e-4)
        True

        Raises:
            ValueError: for a name that the kernel does not have, or a value out of its range.
        """
        make: Any = type(self)  # `Kernel`
        try:
            return make(self.program.replaced(**numbers))
        except ValueError as error:
            fixed = {name.rpartition("/")[2] for name in injection.names(self.program.schedules(False))}
            if scheduled := sorted(fixed & numbers.keys()):
                raise ValueError(
                    f"`{scheduled[0]}` is a schedule, which is a part of the compiled step. Received: "
                    f"{scheduled[0]}={numbers[scheduled[0]]!r}. Make the kernel anew with a number: it continues from "
                    "the same state. Or scale the schedule: `lambda count: 0.1 * schedule(count)`."
                ) from error
            raise

    def hyper(self) -> dict[str, Any]:
        """The run-time hyperparameters by name, as scalar arrays; with groups, a dict for each group."""
        with jax.ensure_compile_time_eval():
            return self.program.hyper()

    def current(self, state: State) -> dict[str, Any]:
        """The hyperparameters of a step from `state`: the injected ones in the state, and the kernel's for all others.

        A rate that is a schedule is not among them: injected, it is in `state.hyperparams`, as the last step used it.

        Raises:
            TypeError: if `state` is no state. ValueError: if its hyperparameters are not those that the kernel injects.
        """
        if not isinstance(state, State):
            raise TypeError(
                "`state` must be what `init` or the last call returned. Received: a value of type "
                f"{type(state).__name__}"
            )
        dtype = jnp.result_type(float)  # depends on whether x64 is enabled
        if (hyper := self._arrays.get(dtype)) is None:
            hyper = self.hyper()
            if not any(isinstance(x, Tracer) for x in jax.tree.leaves(hyper)):  # traced values stay in their trace
                self._arrays[dtype] = hyper
        if state.hyperparams or self._injected:
            injection.check(self._injected, state.hyperparams)
            return injection.merged(hyper, state.hyperparams)
        return hyper

    def numbers(self, state: State) -> dict[str, Any]:
        """The hyperparameters of the step that led to `state`, the rate of a schedule too: for logs.

        They are scalar arrays by name; with groups, a dict for each group. Before the first step they are those of the
        first step. Works inside `jit`.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel, params = jk.adam(jk.schedules.PolynomialDecay(1.0, 10, 0.0)), jnp.zeros(2)
        >>> state = kernel.init(params)
        >>> for _ in range(3):
        ...     params, state = kernel.step(params, state, jnp.ones(2))
        >>> {name: round(float(x), 3) for name, x in kernel.numbers(state).items()}
        {'beta_1': 0.9, 'beta_2': 0.999, 'epsilon': 0.0, 'learning_rate': 0.8}

        Raises:
            TypeError: if `state` is no state. ValueError: if it is a state of a kernel with other injected numbers.
        """
        values = jax.tree.map(_plain, self.current(state), is_leaf=lambda x: isinstance(x, Complemented))
        if not (schedules := self.program.schedules(injected=False)):
            return values
        return injection.joined(values, injection.scheduled(schedules, state))

    @functools.cached_property
    def _injected(self) -> list[str]:
        """The names of the hyperparameters in a state, scheduled ones too."""
        return injection.names(self.program.injected(self.hyper()), self.program.schedules())

    def keep(self, hyperparams: dict[str, Any], state: State) -> State:
        """A step's result, with the hyperparameters of the state before; scheduled ones are computed."""
        found = self._scheduled(state._replace(slots={})) if self.program.schedules() else {}
        return state._replace(hyperparams=injection.joined(hyperparams, found))

    @functools.cached_property
    def _scheduled(self) -> Any:
        return injection.compiled_schedules(self.program.schedules())

    def replaced(self, state: State, **hyper: Any) -> State:
        """`state` with other injected hyperparameters, without a new compilation.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel = jk.sgd(0.1, inject_hyperparams="learning_rate")
        >>> state = kernel.replaced(kernel.init(jnp.zeros(2)), learning_rate=0.5)
        >>> float(state.hyperparams["learning_rate"])
        0.5

        With groups, every group that has all of the names gets the values; `in_group` changes one group. A rate that is
        a schedule cannot be replaced: each step computes it anew, also where it was assigned in the state.

        Raises:
            ValueError: for a name that is not injected or a schedule, or for a value out of its range.
        """
        self.current(state)
        return state._replace(hyperparams=injection.replaced(self.program, state.hyperparams, hyper))

    def in_group(self, state: State, group: str, **hyper: Any) -> State:
        """`state` with other injected hyperparameters in one group, named by its pattern, or "default"."""
        return state._replace(hyperparams=injection.in_group(self.program, state.hyperparams, group, hyper))


def _plain(x: Any) -> Any:
    """A number without its complement."""
    return x.value if isinstance(x, Complemented) else x
