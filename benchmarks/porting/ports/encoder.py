"""nn.TransformerEncoder with padding; a port in Linen with a fused projection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HEADS, HIDDEN, DEPTH = 43, 20, 5, 31, 2


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.decoder = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens, padding):
        x = self.embedding(tokens) * WIDTH**0.5
        return self.decoder(self.encoder(x, src_key_padding_mask=padding))


def torch_model() -> nn.Module:
    return draw(Encoder())


def inputs() -> Any:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (3, 18))
    return {"tokens": tokens, "padding": np.arange(18) >= np.array([[18], [11], [15]])}


class Attention(linen.Module):
    order: str
    heads_last: bool

    @linen.compact
    def __call__(self, x, allowed):
        n, length, width = x.shape
        parts = jnp.split(linen.Dense(3 * width, name="in_proj")(x), 3, axis=-1)
        if self.heads_last:
            heads = [y.reshape(n, length, -1, HEADS).transpose(0, 3, 1, 2) for y in parts]
        else:
            heads = [y.reshape(n, length, HEADS, -1).transpose(0, 2, 1, 3) for y in parts]
        y = dict(zip(self.order, heads, strict=True))
        q = y["q"] / jnp.sqrt(width // HEADS)
        scores = jnp.where(allowed[:, None, None], q @ y["k"].swapaxes(-1, -2), -1e9)
        mixed = jax.nn.softmax(scores, axis=-1) @ y["v"]
        mixed = mixed.transpose(0, 2, 3, 1) if self.heads_last else mixed.transpose(0, 2, 1, 3)
        return linen.Dense(width, name="out_proj")(mixed.reshape(n, length, width))


class Layer(linen.Module):
    order: str
    heads_last: bool
    pre_norm: bool

    def setup(self):
        self.attention = Attention(self.order, self.heads_last)
        self.up, self.down = linen.Dense(HIDDEN), linen.Dense(WIDTH)
        self.norm_a, self.norm_b = (linen.LayerNorm(epsilon=1e-5) for _ in range(2))

    def __call__(self, x, allowed):
        def feed_forward(x):
            return self.down(jax.nn.gelu(self.up(x), approximate=False))

        if self.pre_norm:
            x = x + self.attention(self.norm_a(x), allowed)
            return x + feed_forward(self.norm_b(x))
        x = self.norm_a(x + self.attention(x, allowed))
        return self.norm_b(x + feed_forward(x))


class Tagger(linen.Module):
    order: str = "qkv"
    heads_last: bool = False
    pre_norm: bool = False
    inverted: bool = False
    scaled: bool = True

    @linen.compact
    def __call__(self, tokens, padding):
        x = linen.Embed(VOCAB, WIDTH, name="embed")(tokens)
        x = x * jnp.sqrt(jnp.array(WIDTH, x.dtype)) if self.scaled else x
        for i in range(DEPTH):
            layer = Layer(self.order, self.heads_last, self.pre_norm, name=f"layer_{i}")
            x = layer(x, padding if self.inverted else ~padding)
        return linen.Dense(VOCAB, name="readout")(x)


def convert(w: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def dense(name: str, joint: str = ".") -> Any:
        return {"kernel": w[f"{name}{joint}weight"].T, "bias": w[f"{name}{joint}bias"]}

    def norm(name: str) -> Any:
        return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    params = {"embed": {"embedding": w["embedding.weight"]}, "readout": dense("decoder")}
    for i in range(DEPTH):
        name = f"encoder.layers.{i}"
        params[f"layer_{i}"] = {
            "attention": {
                "in_proj": dense(f"{name}.self_attn.in_proj", "_"),
                "out_proj": dense(f"{name}.self_attn.out_proj"),
            },
            "up": dense(f"{name}.linear1"),
            "down": dense(f"{name}.linear2"),
            "norm_a": norm(f"{name}.norm1"),
            "norm_b": norm(f"{name}.norm2"),
        }
    return {"params": params}


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return Tagger(**changes), convert(w)

    # linen.Embed keeps what it was defined with; its output is float32 where that is.
    return Case(name, "linen", torch_model, port, inputs, faults)


ATTENTION = "encoder.layers.*.self_attn"
CASES = [
    case("fused projection"),
    case("keys before queries", Fault(ATTENTION, ("qkv-order",)), order="kqv"),
    case("heads in the last axis", Fault(ATTENTION, ("head-order",)), heads_last=True),
    case(
        "padding mask not inverted",
        Fault(ATTENTION, ("mask-inverted",)),
        inverted=True,
    ),
    case("embedding not scaled", Fault("", ("embedding-scale",), ("embedding",)), scaled=False),
    case("norms first", Fault("encoder.layers.*", ("norm-placement",)), pre_norm=True),
]
