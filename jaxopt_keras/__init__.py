"""Optimizers for JAX: pure kernels and Keras-style classes over one implementation."""

from jaxopt_keras import checkpoint as checkpoint
from jaxopt_keras import history as history
from jaxopt_keras import optimizers as optimizers
from jaxopt_keras import schedules as schedules
from jaxopt_keras import sharding as sharding
from jaxopt_keras.buffers import pack_variables as pack_variables
from jaxopt_keras.engine.plan import nbytes as nbytes
from jaxopt_keras.functional import Kernel as Kernel
from jaxopt_keras.gradients import value_and_grad as value_and_grad
from jaxopt_keras.groups import frozen as frozen
from jaxopt_keras.groups import partition as partition
from jaxopt_keras.loss_scale import LossScaleOptimizer as LossScaleOptimizer
from jaxopt_keras.multi import MultiOptimizer as MultiOptimizer
from jaxopt_keras.multi import OptimizerMap as OptimizerMap
from jaxopt_keras.optimizer import Optimizer as Optimizer
from jaxopt_keras.optimizers import *  # noqa: F403  # one name for each rule, and none is written twice
from jaxopt_keras.options import Options as Options
from jaxopt_keras.packed import Packed as Packed
from jaxopt_keras.packed import pack as pack
from jaxopt_keras.rule import Rule as Rule
from jaxopt_keras.scaling import loss_scaled as loss_scaled
from jaxopt_keras.serialization import deserialize as deserialize
from jaxopt_keras.serialization import get as get
from jaxopt_keras.serialization import serialize as serialize
from jaxopt_keras.sparse import IndexedSlices as IndexedSlices
from jaxopt_keras.variable import Variable as Variable
