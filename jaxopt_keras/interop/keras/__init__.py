"""The optimizers as `keras.optimizers.Optimizer`s: `compile`, `fit`, `save`, `load_model` and callbacks take them.

    from jaxopt_keras.interop.keras import Adam
    model.compile(optimizer=Adam(1e-3), loss="mse")

Each named optimizer has a class with Keras's name and arguments and the keyword-only arguments of this library.
`as_keras` adapts any other optimizer. After this import `compile(optimizer="jaxopt_keras>Adam")` works too. Keras must
run on JAX.

One adapter makes them from the classes of `jaxopt_keras`: the compiled step and the state are the same, and Keras sees
the state as `keras.Variable`s. docs/keras.md lists the differences from Keras's own classes.
"""

from typing import Any

from jaxopt_keras.language.optional import missing

try:
    import keras
except ImportError as error:
    raise missing("keras", "`jaxopt_keras.interop.keras`", "keras") from error

if keras.backend.backend() != "jax":
    raise ImportError(
        "`jaxopt_keras.interop.keras` needs Keras's JAX backend. Set KERAS_BACKEND=jax before Keras is imported. "
        f"Received: the backend {keras.backend.backend()!r}"
    )

from jaxopt_keras.interop.keras.adapter import Adapter
from jaxopt_keras.interop.keras.callback import HistoryCallback as HistoryCallback
from jaxopt_keras.interop.keras.wrappers import NAMED
from jaxopt_keras.interop.keras.wrappers import as_keras as as_keras
from jaxopt_keras.optimizers import CLASSES as STATEFUL
from jaxopt_keras.optimizers import MORE_CLASSES
from jaxopt_keras.stateful.optimizer import Optimizer


def adapted(stateful: type[Optimizer]) -> type[Adapter]:
    """The Keras class of a named optimizer."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        optimizer = stateful(*args, **kwargs)
        self._wrap(optimizer, optimizer._options.name)

    __init__.__signature__ = stateful.__init__.__signature__  # type: ignore[attr-defined]  # an attribute of a function
    members = {"__init__": __init__, "__doc__": stateful.__doc__, "__module__": __name__}
    made = type(stateful.__name__, (Adapter,), members)
    NAMED[stateful] = keras.saving.register_keras_serializable(package="jaxopt_keras")(made)
    return made


CLASSES: dict[str, type[Adapter]] = {name: adapted(stateful) for name, stateful in STATEFUL.items()}
MODIFIED: dict[str, type[Adapter]] = {name: adapted(stateful) for name, stateful in MORE_CLASSES.items()}
globals().update(CLASSES | MODIFIED)
__all__ = [*CLASSES, *MODIFIED, "HistoryCallback", "as_keras"]  # pyright: ignore[reportUnsupportedDunderAll]  # the stub lists the names
