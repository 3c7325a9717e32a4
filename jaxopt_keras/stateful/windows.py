"""Windows of accumulation in the stateful face: their early end, and variables that are frozen within one."""

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.stateful.call import ENDING
from jaxopt_keras.stateful.lock import LOCK
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.transactions import Transactions


class Windows(Transactions):
    """The windows of an optimizer with `gradient_accumulation_steps`."""

    def flush(self) -> View:
        """End the window of `gradient_accumulation_steps` now: a step with the mean of the gradients so far.

        It is for the end of an epoch. If nothing was accumulated, nothing changes and nothing is counted. A variable
        whose accumulated gradients are all zeros, or missing, does not change.

        Returns:
            `iterations`.

        Raises:
            TypeError: if the optimizer accumulates no gradients.

        >>> import jaxopt_keras as jk
        >>> w, optimizer = jk.Variable(0.0), jk.SGD(1.0, gradient_accumulation_steps=4)
        >>> for g in (1.0, 3.0):
        ...     _ = optimizer.apply([g], [w])
        >>> int(optimizer.flush()), float(w.numpy())
        (1, -2.0)
        """
        with LOCK:
            self._step_or_undo(dict.fromkeys(self._handles), ENDING, None)
        return self.iterations

    def _drop_sums_of_frozen(self) -> None:
        """Clear the sums of gradients of variables that were frozen in the middle of a window of accumulation.

        Otherwise the gradients from before would move them at its end.
        """
        frozen = frozenset(path for path, h in self._handles.items() if not h.trainable)
        if fresh := frozen - self._without_sums:
            state = self._state
            sums = {k: jax.tree.map(jnp.zeros_like, x) if k in fresh else x for k, x in state.slots[SUM].items()}
            self._put(state._replace(slots=state.slots | {SUM: sums}))
        object.__setattr__(self, "_without_sums", frozen)
