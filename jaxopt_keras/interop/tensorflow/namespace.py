"""Namespaces such as `tf.math`: modules whose missing names say what to do."""

import difflib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

ROOT = "jaxopt_keras.interop.tensorflow"

_TAPE = (
    "JAX has no tape, because it differentiates functions. Write `loss, grads = jaxopt_keras.value_and_grad(loss_fn, "
    "variables)`, where `loss_fn` reads the variables, and `optimizer.apply_gradients(zip(grads, variables))`. Or do "
    "both at once: `optimizer.minimize(loss_fn, variables)`."
)
_MODELS = (
    "Use Keras for models: set KERAS_BACKEND=jax, `import keras`, and compile them with an optimizer of "
    "`jaxopt_keras.interop.keras`."
)
INSTEAD = {
    **dict.fromkeys(("GradientTape", "gradients"), _TAPE),
    **dict.fromkeys(("keras.Model", "keras.Sequential", "keras.layers", "keras.models"), _MODELS),
    "data": "Use any iterable of batches as a dataset.",
}


HELPERS = (
    "Any", "DTYPES", "FromKeras", "Namespace", "SimpleNamespace", "Tracer", "arrays", "calls", "control", "found",
    "jax", "jnp", "keras_names", "names", "namespace", "np", "value_of", "variables",
)  # fmt: skip


class Namespace(ModuleType):
    """A namespace in `tf`. It can be imported: `from jaxopt_keras.interop.tensorflow.keras import backend`."""

    def __init__(self, path: str, **names: Any) -> None:
        super().__init__(f"{ROOT}.{path}")
        self.__dict__.update(names, __path__=[])  # a package
        sys.modules[self.__name__] = self

    if TYPE_CHECKING:  # any name may be set

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python itself looks for such names
            raise AttributeError(name)
        raise missing(f"{self.__name__.removeprefix(ROOT + '.')}.{name}", self.__dict__)

    def __repr__(self) -> str:
        return f"<namespace {self.__name__.removeprefix(ROOT + '.')} of {ROOT}>"


def missing(path: str, names: dict[str, Any]) -> AttributeError:
    """Return the error for a name that is missing among `names`."""
    listed = sorted(name for name in names if not name.startswith("_") and name not in HELPERS)
    remedy = INSTEAD.get(path) or (
        "It has the names that optimizers use; for others, use `jax.numpy`."
        + "".join(f" Did you mean `{x}`?" for x in difflib.get_close_matches(path.rsplit(".", 1)[-1], listed, 1))
        + f" There are: {', '.join(listed)}."
    )
    return AttributeError(f"`{ROOT}` has no `{path}`. {remedy}")
