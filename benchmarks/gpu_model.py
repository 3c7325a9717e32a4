"""A training step of GPT-2 small on a GPU: how much of it is the optimizer's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.workloads import WORKLOADS

BATCH, CONTEXT, HEADS = 8, 1024, 12


class Model(NamedTuple):
    """A transformer of the shapes of GPT-2 small, or of a tiny one."""

    shapes: dict[str, tuple[int, ...]]
    layers: int
    heads: int
    batch: int
    context: int

    def batch_of(self, key: Any) -> Any:
        return jax.random.randint(key, (self.batch, self.context + 1), 0, self.shapes["tokens"][0])


def gpt2() -> Model:
    return Model(dict(WORKLOADS["gpt2"].shapes), 12, HEADS, BATCH, CONTEXT)


def tiny() -> Model:
    """Return a model of the same names, with the sides of GPT-2 divided."""
    small = {50257: 31, 1024: 8, 768: 16, 2304: 48, 3072: 64}
    shapes = {k: tuple(small[n] for n in s) for k, s in WORKLOADS["gpt2"].shapes.items()}
    shapes = {k: s for k, s in shapes.items() if not k.startswith("layer") or k.startswith(("layer0/", "layer1/"))}
    return Model(shapes, 2, 2, 2, 8)


def loss(model: Model, params: dict[str, Any], tokens: Any) -> Any:
    """Return the mean cross entropy of the next token. Products are in bfloat16, sums in float32."""
    half = {name: p.astype(jnp.bfloat16) for name, p in params.items()}
    x = half["tokens"][tokens[:, :-1]] + half["positions"][: model.context]
    for layer in range(model.layers):
        at = lambda name, layer=layer: half[f"layer{layer}/{name}"]
        dense = lambda x, name, at=at: x @ at(f"{name}/kernel") + at(f"{name}/bias")
        y = norm(x, at("norm1/scale"), at("norm1/bias"))
        q, k, v = (_by_head(z, model.heads) for z in jnp.split(dense(y, "attention/in"), 3, axis=-1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(y.reshape(x.shape), "attention/out")
        x = x + dense(jax.nn.gelu(dense(norm(x, at("norm2/scale"), at("norm2/bias")), "mlp/in")), "mlp/out")
    x = norm(x, half["norm/scale"], half["norm/bias"])
    logits = jnp.einsum("btw,vw->btv", x, half["tokens"], preferred_element_type=jnp.float32)
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
    return -jnp.mean(found)


def norm(x: Any, scale: Any, bias: Any) -> Any:
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, -1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + jnp.float32(1e-5))
    return wide.astype(x.dtype) * scale + bias


def _by_head(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:-1], heads, -1)
