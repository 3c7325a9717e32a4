"""The native engine: compiles a step's element-wise arithmetic to loops, each one pass over memory."""

from jaxopt_keras.engine.native import unpack as unpack  # registers a lowering
from jaxopt_keras.engine.native.backends import none_is_available as none_is_available
from jaxopt_keras.engine.native.backends import unavailable as unavailable
from jaxopt_keras.engine.native.build import Unavailable as Unavailable
from jaxopt_keras.engine.native.lower import native as native
from jaxopt_keras.engine.native.lower import reasons as reasons
