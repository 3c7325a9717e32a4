"""`tf.keras`, as far as optimizers use it: optimizers, schedules, `backend`, `utils`, and `initializers` of Keras."""

import functools
import importlib
import os
import sys
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp

import jaxopt_keras
from jaxopt_keras import schedules
from jaxopt_keras.interop.tensorflow import names
from jaxopt_keras.interop.tensorflow.calls import with_arrays
from jaxopt_keras.interop.tensorflow.namespace import INSTEAD, ROOT, Namespace, missing
from jaxopt_keras.interop.tensorflow.variables import is_sparse
from jaxopt_keras.optimizers import CLASSES
from jaxopt_keras.stateful.variable import value_of

BASE = jaxopt_keras.Optimizer
OPTIMIZERS = {name: x for name, x in vars(jaxopt_keras).items() if isinstance(x, type) and issubclass(x, BASE)}


@functools.cache
def installed() -> Any:
    """Return Keras on its JAX backend; None if it is not installed, or runs on another backend."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        keras = importlib.import_module("keras")
    except ImportError:
        return None
    return keras if keras.backend.backend() == "jax" else None


def found(name: str, names: dict[str, Any], path: str = "", source: str = "ops") -> Any:
    """Return what Keras has under a name that a namespace lacks.

    Args:
        name: the name.
        names: those of the namespace, for the error.
        path: of the namespace, such as `math.`.
        source: the module of Keras.

    Raises:
        AttributeError: if Keras has none either, or is not installed.
    """
    if not name.startswith("_") and f"{path}{name}" not in INSTEAD and (keras := installed()) is not None:
        module = functools.reduce(getattr, source.split("."), keras)
        if hasattr(module, name):
            return with_arrays(getattr(module, name)) if source == "ops" else getattr(module, name)
    raise AttributeError(name) if name.startswith("__") else missing(f"{path}{name}", names)


class FromKeras(Namespace):
    """A namespace whose missing names are those of a module of Keras, if it is installed."""

    def __init__(self, path: str, source: str, **names: Any) -> None:
        super().__init__(path, **names)
        self.__dict__["_source"] = source

    def __getattr__(self, name: str) -> Any:
        path = self.__name__.removeprefix(f"{ROOT}.")
        return found(name, self.__dict__, f"{path}.", self.__dict__["_source"])


class FromNumPy(Namespace):
    """A namespace with the functions of `jax.numpy`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(jnp, name):  # Python itself looks for `__file__` and the like
            return super().__getattr__(name)
        return with_arrays(getattr(jnp, name))


def legacy(cls: type) -> type:
    """Return a named optimizer with the arguments of TF 2: `lr`, `decay`, and functions that transform gradients."""

    def __init__(self: Any, *args: Any, lr: Any = None, decay: float = 0.0, **kwargs: Any) -> None:
        if lr is not None:
            kwargs["learning_rate"] = lr
        cls.__init__(self, *args, **kwargs)
        if decay:
            rate = float(value_of(self.learning_rate))
            self.learning_rate = schedules.InverseTimeDecay(rate, 1, decay)

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": "jaxopt_keras", "__doc__": cls.__doc__})


def get(identifier: Any, use_legacy_optimizer: Any = None, **kwargs: Any) -> Any:
    """Return an optimizer by name, config or instance."""
    return jaxopt_keras.get(identifier)


LEGACY = {name: legacy(cls) for name, cls in CLASSES.items()}
MAKERS = {"get": get, "serialize": jaxopt_keras.serialize, "deserialize": jaxopt_keras.deserialize}

schedules_namespace = FromKeras("keras.optimizers.schedules", "optimizers.schedules", **vars(schedules))
experimental = Namespace("keras.optimizers.experimental", **OPTIMIZERS)
optimizers = FromKeras("keras.optimizers", "optimizers", **OPTIMIZERS, **MAKERS, schedules=schedules_namespace)
optimizers.legacy = Namespace(
    "keras.optimizers.legacy", **OPTIMIZERS | LEGACY, **MAKERS, optimizer_v2=SimpleNamespace(OptimizerV2=BASE)
)
optimizers.experimental = experimental
optimizers.optimizer = optimizers.base_optimizer = module = Namespace(
    "keras.optimizers.optimizer", Optimizer=BASE, BaseOptimizer=BASE, base_optimizer_keyword_args=""
)
optimizers.optimizer_experimental = Namespace("keras.optimizers.optimizer_experimental", optimizer=module)
optimizers.optimizer_v2 = Namespace("keras.optimizers.optimizer_v2", OptimizerV2=BASE, optimizer_v2=None)


def register_keras_serializable(package: str = "Custom", name: str | None = None) -> Any:
    """Register a class in Keras, if it is installed, so that `as_keras` finds it in a saved model."""
    keras = installed()
    return (lambda x: x) if keras is None else keras.saving.register_keras_serializable(package, name)


def constant(value: Any = 0) -> Any:
    """Return an initializer of one value."""
    return lambda shape, dtype=None: jnp.full(shape, value, dtype)


INITIALIZERS = {
    **dict.fromkeys(("Constant", "constant"), constant),
    **dict.fromkeys(("Zeros", "zeros"), lambda: constant(0)),
    **dict.fromkeys(("Ones", "ones"), lambda: constant(1)),
}


def floatx() -> str:
    """Return the default dtype of floats."""
    return jnp.result_type(float).name


def epsilon() -> float:
    """Return Keras's small number."""
    return 1e-7


backend = FromKeras(
    "keras.backend", "ops", **names.BACKEND, is_sparse=is_sparse, floatx=floatx, epsilon=epsilon,
    get_value=lambda x: x.numpy() if hasattr(x, "numpy") else x, set_value=lambda x, value: x.assign(value),
    cast_to_floatx=lambda x: names.ARRAYS["cast"](x, floatx()), backend=lambda: "jax",
    update=lambda x, new_x: x.assign(new_x), update_add=lambda x, increment: x.assign_add(increment),
    update_sub=lambda x, decrement: x.assign_sub(decrement),
)  # fmt: skip
saving = Namespace("keras.saving", register_keras_serializable=register_keras_serializable)
utils = Namespace("keras.utils", register_keras_serializable=register_keras_serializable)
initializers = FromKeras("keras.initializers", "initializers", **INITIALIZERS)
ops = FromKeras("keras.ops", "ops")
shared = {
    "optimizers": optimizers, "backend": backend, "saving": saving, "utils": utils, "initializers": initializers,
    "ops": ops, "constraints": FromKeras("keras.constraints", "constraints"),
    "regularizers": FromKeras("keras.regularizers", "regularizers"), "Optimizer": BASE,
    "version": lambda: "3.0", "__version__": "3.0",
}  # fmt: skip
keras = Namespace("keras", **shared)
keras.src = Namespace("keras.src", **shared)
for path, module in [*sys.modules.items()]:  # `keras.src` has the same modules
    if path.startswith(f"{keras.__name__}.") and not path.startswith(keras.src.__name__):
        sys.modules[path.replace(keras.__name__, keras.src.__name__, 1)] = module
