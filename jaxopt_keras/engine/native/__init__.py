"""The native CPU engine: compiles a step's element-wise arithmetic to loops in C, each one pass over memory."""

from jaxopt_keras.engine.native import unpack as unpack  # registers a lowering
from jaxopt_keras.engine.native.build import Unavailable as Unavailable
from jaxopt_keras.engine.native.build import unavailable as unavailable
from jaxopt_keras.engine.native.lower import native as native
from jaxopt_keras.engine.native.lower import reasons as reasons
