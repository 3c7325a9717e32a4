"""The native CPU engine: a step's own arithmetic as loops in C, each one pass over memory (README.md)."""

from jaxopt_keras.engine.native import apart as apart  # which tells JAX of itself
from jaxopt_keras.engine.native.build import Unavailable as Unavailable
from jaxopt_keras.engine.native.build import unavailable as unavailable
from jaxopt_keras.engine.native.lower import native as native
from jaxopt_keras.engine.native.lower import reasons as reasons
