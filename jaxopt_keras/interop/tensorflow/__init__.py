"""TensorFlow 2's names, as far as the code of an optimizer uses them: it runs on JAX with one line changed.

    import jaxopt_keras.interop.tensorflow as tf        # before: import tensorflow as tf

TensorFlow is not needed, and not emulated. The functions are those of JAX with TensorFlow's arguments; they take
Variables, arrays and numbers, and return JAX arrays. `tf.keras.optimizers` has the optimizers of this library. A name
that is missing says so. Three things differ:

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

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.interop.tensorflow import control, names, raw_ops
from jaxopt_keras.interop.tensorflow.keras_names import FromKeras, FromNumPy, found
from jaxopt_keras.interop.tensorflow.keras_names import keras as keras
from jaxopt_keras.interop.tensorflow.namespace import Namespace
from jaxopt_keras.interop.tensorflow.variables import DTYPES, SparseTensor
from jaxopt_keras.interop.tensorflow.variables import Tensor as Tensor
from jaxopt_keras.interop.tensorflow.variables import Variable as Variable
from jaxopt_keras.language.sparse import IndexedSlices as IndexedSlices
from jaxopt_keras.stateful.variable import value_of

newaxis, __version__ = None, "2.0"
bool = DTYPES["bool"]  # as in TensorFlow
globals().update(DTYPES | names.ARRAYS | names.TOP)
cond, while_loop, function = control.cond, control.while_loop, control.function
group, no_op = control.group, control.no_op
control_dependencies = name_scope = device = init_scope = control.nothing
DType, Operation = jnp.dtype, type(None)


def executing_eagerly() -> Any:
    """Return True: operations run in the order of the code."""
    return True


def get_static_value(tensor: Any, partial: Any = False) -> Any:
    """Return the value of an array as a NumPy array, or None if it is traced."""
    return None if isinstance(value_of(tensor), Tracer) else np.asarray(value_of(tensor))


# --- namespaces

math = FromKeras("math", "ops", **names.MATH)
linalg = FromKeras("linalg", "ops", **names.LINALG)
nn = FromKeras("nn", "ops", **names.NN)
random = Namespace("random", **names.RANDOM, set_seed=lambda seed: None)
dtypes = Namespace("dtypes", **DTYPES, cast=names.ARRAYS["cast"], DType=jnp.dtype)
sparse = Namespace("sparse", SparseTensor=SparseTensor)
nest = Namespace("nest", map_structure=jax.tree.map, flatten=jax.tree.leaves)
debugging = Namespace("debugging", **dict.fromkeys(("assert_integer", "assert_equal", "check_numerics"), control.no_op))
experimental = Namespace("experimental", numpy=FromNumPy("experimental.numpy"))
raw = Namespace("raw_ops", **{name: x for name, x in vars(raw_ops).items() if name.startswith("Resource")})
raw_ops = raw
initializers = keras.initializers
constant_initializer, zeros_initializer, ones_initializer = (
    initializers.constant,
    initializers.zeros,
    initializers.ones,
)
backend_config = keras.backend
losses = FromKeras("losses", "losses")
optimizers = keras.optimizers


def _all_reduce(reduce_op: Any, value: Any, options: Any = None) -> Any:
    """Return `value`: there is one replica. (Inside `shard_map` or `pmap`, use `jax.lax.psum(value, axis_name)`.)"""
    return value


_REPLICA = Namespace(
    "distribute.ReplicaContext", all_reduce=_all_reduce, num_replicas_in_sync=1, replica_id_in_sync_group=0
)
distribute = Namespace(
    "distribute", get_replica_context=lambda: _REPLICA, get_strategy=lambda: _REPLICA, has_strategy=lambda: False,
    in_cross_replica_context=lambda: False, ReduceOp=SimpleNamespace(SUM="SUM", MEAN="MEAN"),
)  # fmt: skip


def __getattr__(name: str) -> Any:
    return found(name, globals())
