"""TensorFlow 2's names, as far as the code of an optimizer uses them: it runs on JAX with one line changed.

    import jaxopt_keras.interop.tensorflow as tf        # before: import tensorflow as tf

TensorFlow is not needed, and not emulated. The functions are those of `jax.numpy`; they take Variables, arrays and
numbers, and return JAX arrays. `tf.keras.optimizers` has the optimizers of this library. Three things differ:

- There is no `tf.GradientTape`, because JAX differentiates functions: use `jaxopt_keras.value_and_grad`.
- There are no models, layers and datasets: use Keras with its JAX backend.
- 64-bit types need `jax.config.update("jax_enable_x64", True)`, as everywhere in JAX.

>>> import jaxopt_keras.interop.tensorflow as tf
>>> class Halving(tf.keras.optimizers.Optimizer):
...     def __init__(self, name="Halving", **kwargs):
...         super().__init__(name, **kwargs)
...
...     def _resource_apply_dense(self, grad, var):
...         var.assign_sub(tf.cast(0.5, var.dtype.base_dtype) * grad)
>>> w = tf.Variable(initial_value=3, dtype=tf.float32)
>>> int(Halving().minimize(lambda: tf.square(w), [w])), w.numpy()
(1, array(0., dtype=float32))
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import jaxopt_keras
from jaxopt_keras import schedules
from jaxopt_keras.language.sparse import IndexedSlices as IndexedSlices
from jaxopt_keras.stateful.custom.hooks import Tf2DType
from jaxopt_keras.stateful.variable import value_of

# ---------------------------------------------------------------------------------------------------------------------
# Names of TensorFlow that this module lacks

_TAPE = (
    "JAX has no tape, because it differentiates functions. Write `loss, grads = jaxopt_keras.value_and_grad(loss_fn, "
    "variables)`, where `loss_fn` reads the variables, and `optimizer.apply_gradients(zip(grads, variables))`. Or do "
    "both at once: `optimizer.minimize(loss_fn, variables)`."
)
_MODELS = (
    "Use Keras for models: set KERAS_BACKEND=jax, `import keras`, and compile them with an optimizer of "
    "`jaxopt_keras.interop.keras`."
)
_INSTEAD = {
    **dict.fromkeys(("GradientTape", "gradients"), _TAPE),
    **dict.fromkeys(("keras.Model", "keras.Sequential", "keras.layers", "keras.models"), _MODELS),
    "function": "`jax.jit` compiles a pure function. An optimizer and `value_and_grad(loss_fn, variables, *batch)` are "
    "compiled anyway.",
    "data": "Use any iterable of batches as a dataset.",
}


def _missing(name: str) -> AttributeError:
    remedy = _INSTEAD.get(name, "It has only the names that optimizers use. For others, use `jax.numpy`.")
    return AttributeError(f"`jaxopt_keras.interop.tensorflow` has no `{name}`. {remedy}")


def __getattr__(name: str) -> Any:
    raise _missing(name)


class _Namespace(SimpleNamespace):
    """A namespace in `tf`, such as `tf.math`."""

    def __init__(self, path: str, **names: Any) -> None:
        super().__init__(**names)
        self.__name__ = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python itself looks for such names
            raise AttributeError(name)
        raise _missing(f"{self.__name__}.{name}")

    def __repr__(self) -> str:
        return f"<namespace {self.__name__} of jaxopt_keras.interop.tensorflow>"


# ---------------------------------------------------------------------------------------------------------------------
# Variables and tensors

_DTYPES = ("bool", "int32", "int64", "bfloat16", "float16", "float32", "float64")
globals().update({name: jnp.dtype(name) for name in _DTYPES})

newaxis = None
Tensor = jax.Array


class Variable(jaxopt_keras.Variable):
    """A `jaxopt_keras.Variable` with TF's arguments, and with `base_dtype` in its dtype."""

    def __init__(
        self,
        initial_value: Any,
        trainable: Any = True,
        *,
        name: str | None = None,
        dtype: Any = None,
        constraint: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(initial_value, dtype=dtype, name=name, trainable=trainable is not False, constraint=constraint)

    @property
    def dtype(self) -> Any:
        return Tf2DType(super().dtype)

    def read_value(self) -> Array:
        """The current array."""
        return self.value


def convert_to_tensor(value: Any, dtype: Any = None, name: str | None = None) -> Array:
    """Converts a Variable, an array, a number or a list of numbers to a JAX array."""
    return jnp.asarray(value_of(value), dtype)


def cast(x: Any, dtype: Any, name: str | None = None) -> Array:
    """Converts `x` to another dtype."""
    return jnp.asarray(value_of(x), dtype)


def group(*inputs: Any, name: str | None = None) -> None:
    """Does nothing. In TF, hooks return a group of operations to run; here the operations have run already."""


def no_op(name: str | None = None) -> None:
    """Does nothing."""


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


def _with_variables(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with Variables as arguments too, and with TF's argument `name`, which is ignored."""

    def call(*args: Any, name: str | None = None, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(value_of, (args, kwargs))
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = f"`jax.numpy.{function.__name__}`, which takes Variables too."
    return call


def _functions(same: str, **others: Callable[..., Any]) -> dict[str, Any]:
    """Functions by TF's names: of `jax.numpy` by the names in `same`, and `others`, which have other names there."""
    found = {name: getattr(jnp, name) for name in same.split()} | others
    return {name: _with_variables(function) for name, function in found.items()}


_MATH = _functions(
    "add subtract multiply divide negative abs sign square sqrt exp maximum minimum",
    pow=jnp.power,
    reduce_sum=jnp.sum,
    reduce_mean=jnp.mean,
)
_OTHERS = _functions(
    "reshape transpose stack shape size zeros ones zeros_like ones_like where matmul",
    concat=jnp.concatenate,
    clip_by_value=jnp.clip,
    norm=jnp.linalg.norm,
    reduce_max=jnp.max,
    reduce_min=jnp.min,
)
globals().update(_MATH | _OTHERS)
math = _Namespace("math", **_MATH, **_functions("log", rsqrt=jax.lax.rsqrt))
constant = identity = convert_to_tensor

# ---------------------------------------------------------------------------------------------------------------------
# Optimizers

_OPTIMIZERS = {
    name: x for name, x in vars(jaxopt_keras).items() if isinstance(x, type) and issubclass(x, jaxopt_keras.Optimizer)
}
optimizers = _Namespace(
    "keras.optimizers",
    **_OPTIMIZERS,
    get=jaxopt_keras.get,
    serialize=jaxopt_keras.serialize,
    deserialize=jaxopt_keras.deserialize,
    schedules=schedules,
)
optimizers.legacy = optimizers  # TF 2.11 moved the old classes there; here both are the same
keras = _Namespace("keras", optimizers=optimizers)


def _all_reduce(reduce_op: Any, value: Any, options: Any = None) -> Any:
    """Returns `value`: there is one replica. (Inside `shard_map` or `pmap`, use `jax.lax.psum(value, axis_name)`.)"""
    return value


_REPLICA = _Namespace("distribute.ReplicaContext", all_reduce=_all_reduce, num_replicas_in_sync=1)
distribute = _Namespace(
    "distribute", get_replica_context=lambda: _REPLICA, ReduceOp=SimpleNamespace(SUM="SUM", MEAN="MEAN")
)
