"""Adam-mini: Adam with one second moment for each block of parameters, such as a neuron or a head."""

import functools
import re
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.matrices import View, view
from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Read, Rule, Signed, Slot
from jaxopt_keras.rules.orthogonal.shapes import read_views


def usual_blocks(path: str, shape: tuple[int, ...]) -> str:
    """Return the blocks of a parameter by its name and its number of axes, as the authors advise."""
    name = path.lower()
    if "bias" in name:
        return "batch..."
    if len(shape) < 2:
        return "columns..."
    if re.search("embed|embd|wte", name):
        return "batch columns..."
    return "rows batch columns" if len(shape) == 3 and re.search("query|key|q_proj|k_proj", name) else "rows... batch"


class AdamMini(Rule):
    """Adam-mini (Zhang et al. 2024, arXiv:2406.16793): Adam with one second moment for each block.

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) mean(g²)    over a block
        p <- p - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    `blocks` describes the blocks with a word for each axis, as Muon's `matrices` does: "batch" counts blocks, "rows"
    and "columns" are inside of one. By default the blocks of an array of more axes are its outputs, "rows... batch";
    those of an embedding ("embed", "embd" or "wte" in the path) its rows, "batch columns..."; and those of a query or
    key of three axes its heads, "rows batch columns". Each number of a bias is a block, and every other vector is one.
    The authors' release knows names of layers in torch, and takes the rest as one block each. `describe` shows the
    blocks of each array. For heads in one axis say how many: {"query|key": "rows (batch=12 columns)"}.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of mean squares of blocks.
        epsilon: a constant added to the denominator, so that it is not 0.
        blocks: a dict from patterns of paths to descriptions of axes, of which the first that is found counts; or a
            function of path and shape that returns a description. None in the place of a description: the usual one.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "matrix"

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    blocks: Annotated[Any, Read(functools.partial(read_views, "blocks"), searched=True)] = ()

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def placed(self, path: str, p: Array) -> "AdamMini":
        text: Any
        if callable(self.blocks):
            text = self.blocks(path, p.shape)
        else:
            text = next((text for pattern, text in self.blocks if first_match([pattern], path) is not None), None)
        return self.bind({"blocks": view(usual_blocks(path, p.shape) if text is None else text, p.shape, path, ())})

    def seen(self, shape: tuple[int, ...]) -> View:
        return self.blocks if isinstance(self.blocks, View) else view(usual_blocks("", shape), shape, "", ())

    def lacking(self, seen: View) -> tuple[int, ...]:
        """Return the axes of the array that have no part in the count of blocks."""
        counting = {seen.origin[i] for i in seen.axes("batch")}
        return tuple(axis for axis in range(len(seen.shape)) if axis not in counting)

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self.slots() | {"velocity": Slot(nonnegative=True, lacks=self.lacking(self.seen(p.shape)))}

    def init(self, p: Array) -> State:
        seen = self.seen(p.shape)
        inside = seen.axes("rows") + seen.axes("columns")
        numbers = jnp.zeros_like(p.real).reshape(seen.sizes).sum(inside)
        return self.State(jnp.zeros_like(p), numbers.reshape(seen.without("rows").without("columns").shape))

    def about(self, p: Any) -> str:
        number = self.seen(p.shape).number
        return f"{number} block{'s' * (number != 1)}"

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, seen = squarable(g), self.seen(g.shape)
        inside = seen.axes("rows") + seen.axes("columns")
        squares = square(g).reshape(seen.sizes)
        found = jnp.sum(squares / max(seen.matrix[0] * seen.matrix[1], 1), inside, keepdims=True)
        v = ema(s.velocity.reshape(found.shape), found, self.beta_2)
        m = ema(s.momentum, g, self.beta_1)
        u = (m / (1 - self.beta_1**at.t)).reshape(seen.sizes) / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u.reshape(g.shape), self.State(m, v.reshape(s.velocity.shape))
