"""A plugin for pytest that puts the classes of `jaxopt_keras.interop.keras` in the place of Keras's own.

python -m pytest -p tests.interop.keras_swap path/to/keras/src/optimizers/adam_test.py
"""

import importlib
import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras.src.optimizers as theirs

from jaxopt_keras.interop.keras import CLASSES


def pytest_configure() -> None:
    """Here, not where this module is imported: others may look at it, for doctests."""
    for name, cls in CLASSES.items():
        own = getattr(keras.optimizers, name, None)
        if own is None:
            continue
        for module in (keras.optimizers, theirs, importlib.import_module(own.__module__)):
            setattr(module, name, cls)
        theirs.ALL_OBJECTS_DICT[name.lower()] = cls
