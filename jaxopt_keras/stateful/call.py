"""A prepared step of a stateful optimizer."""

from typing import Any, NamedTuple

from jaxopt_keras.pure.kernel import Kernel


class Call(NamedTuple):
    """A prepared step: the kernel and its arguments."""

    kernel: Kernel
    params: Any
    state: Any  # with slots of `params` only, and without hyperparameters
    grads: Any
    hyper: Any
    inner: Any = None  # of a wrapper: the calls of its inner optimizers, by their numbers
