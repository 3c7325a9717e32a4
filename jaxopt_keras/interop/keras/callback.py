"""A callback that records a run of `fit` in a `jaxopt_keras.history.History`."""

from typing import Any

import jax.numpy as jnp
import keras

from jaxopt_keras.history.record import History
from jaxopt_keras.stateful.variable import check


class HistoryCallback(keras.callbacks.Callback):
    """Records the step, the rate, skipped steps, the loss and the metrics of `fit` in a `History`.

    Args:
        history: a `jaxopt_keras.history.History`; None: a new one. It is the attribute `history`.
        every: steps from one row to the next, at least 1. Default: 1. A row makes Keras write the state of its loop to
            the variables; with a large `every` that costs nothing.

    Keras computes the gradients within its compiled step, so there are no norms of gradients: in a loop of your own,
    `History.apply_gradients` has them. The loss and the metrics are Keras's running means over the epoch.

    >>> import numpy as np
    >>> from jaxopt_keras.interop.keras import SGD, HistoryCallback
    >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(SGD(0.1), loss="mse")
    >>> recorder = HistoryCallback()
    >>> _ = model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, epochs=2, verbose=0, callbacks=[recorder])
    >>> recorder.history.names, recorder.history["step"].tolist()
    (['step', 'learning_rate', 'loss'], [1, 2, 3, 4])

    Raises:
        TypeError: if `history` is no `History`. TypeError, ValueError: if `every` is no integer >= 1.
    """

    def __init__(self, history: History | None = None, every: int = 1) -> None:
        super().__init__()
        check(isinstance(history, History | None), "history", history, "a `jaxopt_keras.history.History` or None")
        self.history, self.every = history if history is not None else History(), History(every).every
        self.rate: Any = None

    @property
    def _optimizer(self) -> Any:
        model: Any = self.model  # reading it makes Keras write the state of its loop to the variables
        return model.optimizer

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch % self.every == 0:  # the rate of this step, before the step
            self.rate = jnp.copy(jnp.asarray(keras.ops.convert_to_tensor(self._optimizer.learning_rate)))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch % self.every == 0:
            optimizer = self._optimizer
            row = {"step": jnp.copy(jnp.asarray(optimizer.iterations.value)), "learning_rate": self.rate}
            skipped = getattr(optimizer, "skipped", 0)  # Keras's own optimizers have no such attribute
            if not isinstance(skipped, int):
                row["skipped"] = jnp.copy(jnp.asarray(skipped.value))
            self.history.append(row | dict(logs or {}))
