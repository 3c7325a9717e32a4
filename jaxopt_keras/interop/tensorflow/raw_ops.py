"""The fused updates of `tf.raw_ops` that optimizers call, on variables."""

from typing import Any

import jax.numpy as jnp

from jaxopt_keras.language.sparse import IndexedSlices
from jaxopt_keras.stateful.variable import value_of


def ResourceApplyKerasMomentum(
    var: Any, accum: Any, lr: Any, grad: Any, momentum: Any, use_locking: Any = None, use_nesterov: bool = False
) -> None:
    """v <- momentum v - lr g, p <- p + v; with `use_nesterov` p <- p + momentum v - lr g."""
    lr, grad, momentum = map(value_of, (lr, grad, momentum))
    v = value_of(accum) * momentum - lr * grad
    accum.assign(v)
    var.assign_add(v * momentum - lr * grad if use_nesterov else v)


def ResourceApplyProximalAdagrad(
    var: Any, accum: Any, lr: Any, l1: Any, l2: Any, grad: Any, use_locking: Any = None
) -> None:
    """n <- n + g², then a step of AdaGrad and the proximal operator of l1 |p| + l2 p² / 2."""
    lr, l1, l2, grad = map(value_of, (lr, l1, l2, grad))
    n = value_of(accum) + jnp.square(grad)
    rate = lr / jnp.sqrt(n)
    p = value_of(var) - rate * grad
    shrunk = jnp.sign(p) * jnp.maximum(jnp.abs(p) - rate * jnp.maximum(l1, 0), 0)
    accum.assign(n)
    var.assign(jnp.where(jnp.asarray(l1) > 0, shrunk, p) / (1 + rate * l2))


def ResourceScatterUpdate(resource: Any, indices: Any, updates: Any) -> None:
    """Replace rows."""
    resource.scatter_update(IndexedSlices(value_of(updates), indices))


def ResourceScatterAdd(resource: Any, indices: Any, updates: Any) -> None:
    """Add rows."""
    resource.scatter_add(IndexedSlices(value_of(updates), indices))


def ResourceScatterSub(resource: Any, indices: Any, updates: Any) -> None:
    """Subtract rows."""
    resource.scatter_sub(IndexedSlices(value_of(updates), indices))
