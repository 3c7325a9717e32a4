"""AdamW: Adam with decoupled weight decay."""

from typing import ClassVar

from jaxopt_keras.rules.adam import Adam


class AdamW(Adam):
    """Adam, with decoupled weight decay by default.

        p <- p (1 - lr weight_decay), then as `Adam`

    Loshchilov & Hutter 2017, arXiv:1711.05101. The decay is the common option `weight_decay`; it cannot be None here.
    """

    defaults: ClassVar = {"weight_decay": 0.004}
    required: ClassVar = ("weight_decay",)
    keras: ClassVar = Adam.keras._replace(signature=("learning_rate", "weight_decay"))
