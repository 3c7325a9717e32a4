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
from jaxopt_keras.stateful.custom.stand_ins import Tf2DType
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
    "GradientTape": _TAPE,
    "gradients": _TAPE,
    "function": "`jax.jit` compiles a pure function. An optimizer and `value_and_grad(loss_fn, variables, *batch)` are "
    "compiled anyway.",
    "data": "Use any iterable of batches as a dataset.",
    "keras.Model": _MODELS,
    "keras.Sequential": _MODELS,
    "keras.layers": _MODELS,
    "keras.models": _MODELS,
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

bool = jnp.dtype("bool")
int32 = jnp.dtype("int32")
int64 = jnp.dtype("int64")
bfloat16 = jnp.dtype("bfloat16")
float16 = jnp.dtype("float16")
float32 = jnp.dtype("float32")
float64 = jnp.dtype("float64")

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


constant = convert_to_tensor
identity = convert_to_tensor
reshape = _with_variables(jnp.reshape)
transpose = _with_variables(jnp.transpose)
concat = _with_variables(jnp.concatenate)
stack = _with_variables(jnp.stack)
shape = _with_variables(jnp.shape)
size = _with_variables(jnp.size)
zeros = _with_variables(jnp.zeros)
ones = _with_variables(jnp.ones)
zeros_like = _with_variables(jnp.zeros_like)
ones_like = _with_variables(jnp.ones_like)

add = _with_variables(jnp.add)
subtract = _with_variables(jnp.subtract)
multiply = _with_variables(jnp.multiply)
divide = _with_variables(jnp.divide)
negative = _with_variables(jnp.negative)
abs = _with_variables(jnp.abs)
sign = _with_variables(jnp.sign)
square = _with_variables(jnp.square)
sqrt = _with_variables(jnp.sqrt)
pow = _with_variables(jnp.power)
exp = _with_variables(jnp.exp)
maximum = _with_variables(jnp.maximum)
minimum = _with_variables(jnp.minimum)
clip_by_value = _with_variables(jnp.clip)
where = _with_variables(jnp.where)
matmul = _with_variables(jnp.matmul)
norm = _with_variables(jnp.linalg.norm)
reduce_sum = _with_variables(jnp.sum)
reduce_mean = _with_variables(jnp.mean)
reduce_max = _with_variables(jnp.max)
reduce_min = _with_variables(jnp.min)

math = _Namespace(
    "math",
    add=add,
    subtract=subtract,
    multiply=multiply,
    divide=divide,
    negative=negative,
    abs=abs,
    sign=sign,
    square=square,
    sqrt=sqrt,
    rsqrt=_with_variables(jax.lax.rsqrt),
    pow=pow,
    exp=exp,
    log=_with_variables(jnp.log),
    maximum=maximum,
    minimum=minimum,
    reduce_sum=reduce_sum,
    reduce_mean=reduce_mean,
)

# ---------------------------------------------------------------------------------------------------------------------
# Optimizers

_OPTIMIZERS = {
    name: x for name, x in vars(jaxopt_keras).items() if isinstance(x, type) and issubclass(x, jaxopt_keras.Optimizer)
}
_FUNCTIONS = {
    "get": jaxopt_keras.get,
    "serialize": jaxopt_keras.serialize,
    "deserialize": jaxopt_keras.deserialize,
}
optimizers = _Namespace("keras.optimizers", **_OPTIMIZERS, **_FUNCTIONS, schedules=schedules)
optimizers.legacy = optimizers  # TF 2.11 moved the old classes there; here both are the same
keras = _Namespace("keras", optimizers=optimizers)


def _all_reduce(reduce_op: Any, value: Any, options: Any = None) -> Any:
    """Returns `value`: there is one replica. (Inside `shard_map` or `pmap`, use `jax.lax.psum(value, axis_name)`.)"""
    return value


_REPLICA = _Namespace("distribute.ReplicaContext", all_reduce=_all_reduce, num_replicas_in_sync=1)
distribute = _Namespace(
    "distribute", get_replica_context=lambda: _REPLICA, ReduceOp=SimpleNamespace(SUM="SUM", MEAN="MEAN")
)
