"""Optimizers for JAX: pure kernels and Keras-style classes over one implementation."""

import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jaxopt_keras import optimizers as optimizers
from jaxopt_keras import schedules as schedules
from jaxopt_keras.engine.plan import Plan as Plan
from jaxopt_keras.engine.plan import nbytes as nbytes
from jaxopt_keras.engine.stages.clip import global_norm as global_norm
from jaxopt_keras.engine.state import State as State
from jaxopt_keras.language.options import Options as Options
from jaxopt_keras.language.rule import Rule as Rule
from jaxopt_keras.language.sparse import IndexedSlices as IndexedSlices
from jaxopt_keras.optimizers import *  # noqa: F403  # a class and a function for each rule
from jaxopt_keras.packing.trees import Packed as Packed
from jaxopt_keras.packing.trees import pack as pack
from jaxopt_keras.pure import serializers as _serializers  # noqa: F401  # it registers the nodes of a state
from jaxopt_keras.pure import sharding as sharding
from jaxopt_keras.pure.groups import frozen as frozen
from jaxopt_keras.pure.groups import partition as partition
from jaxopt_keras.pure.kernel import Kernel as Kernel
from jaxopt_keras.pure.loss_scale import loss_scaled as loss_scaled
from jaxopt_keras.rules.orthogonal.clip import qk_clip as qk_clip
from jaxopt_keras.stateful.gradients import value_and_grad as value_and_grad
from jaxopt_keras.stateful.loss_scale import LossScaleOptimizer as LossScaleOptimizer
from jaxopt_keras.stateful.multi import MultiOptimizer as MultiOptimizer
from jaxopt_keras.stateful.multi import OptimizerMap as OptimizerMap
from jaxopt_keras.stateful.optimizer import Optimizer as Optimizer
from jaxopt_keras.stateful.packed_variables import pack_variables as pack_variables
from jaxopt_keras.stateful.serialization import deserialize as deserialize
from jaxopt_keras.stateful.serialization import get as get
from jaxopt_keras.stateful.serialization import serialize as serialize
from jaxopt_keras.stateful.signals import uninterrupted as uninterrupted
from jaxopt_keras.stateful.variable import Variable as Variable

# Older import paths of the modules that rules use, which are now in `language` and `pure`.
for _name, _module in {"rule": "language.rule", "numerics": "language.numerics", "sharding": "pure.sharding"}.items():
    _sys.modules[f"jaxopt_keras.{_name}"] = _sys.modules[f"jaxopt_keras.{_module}"]

# No step needs these rooms: they are imported when they are first read.
_LAZY = ("checkpoint", "history")

if _TYPE_CHECKING:
    from jaxopt_keras import checkpoint as checkpoint
    from jaxopt_keras import history as history

    __version__: str


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f"jaxopt_keras.{name}")
    if name == "__version__":  # of the installed package; its metadata takes 10 ms to read
        return _importlib.import_module("importlib.metadata").version("jaxopt_keras")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
