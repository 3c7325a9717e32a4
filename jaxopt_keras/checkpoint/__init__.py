"""Checkpoints of named arrays, in files and folders, and conversions to and from other libraries."""

from jaxopt_keras.checkpoint.keras import from_keras as from_keras
from jaxopt_keras.checkpoint.keras import to_keras as to_keras
from jaxopt_keras.checkpoint.optax import from_optax as from_optax
from jaxopt_keras.checkpoint.optax import to_optax as to_optax
from jaxopt_keras.checkpoint.saving import from_dict as from_dict
from jaxopt_keras.checkpoint.saving import load as load
from jaxopt_keras.checkpoint.saving import load_params as load_params
from jaxopt_keras.checkpoint.saving import save as save
from jaxopt_keras.checkpoint.saving import to_dict as to_dict
from jaxopt_keras.checkpoint.torch import from_torch as from_torch
from jaxopt_keras.checkpoint.torch import to_torch as to_torch
