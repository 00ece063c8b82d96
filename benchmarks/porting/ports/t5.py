"""The encoder of a T5 of transformers, with padding; a port in NNX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HEADS, KEY, HIDDEN, DEPTH = 47, 20, 4, 6, 29, 2


def torch_model() -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=KEY,
        d_ff=HIDDEN,
        num_layers=DEPTH,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        use_cache=False,
    )
    return draw(T5EncoderModel(config))


def inputs() -> Any:
    ids = np.random.default_rng(0).integers(1, VOCAB, (3, 21))
    mask = (np.arange(21) < np.array([[21], [13], [17]])).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def bucket(distance: jax.Array, both: bool = True, buckets: int = 8, limit: int = 16) -> jax.Array:
    """Half of the buckets for each direction; near distances one each, the rest by logarithm."""
    start = 0
    if both:
        buckets //= 2
        start = buckets * (distance > 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(limit / exact)
    far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    return start + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class ScaleNorm(nnx.Module):
    def __init__(self):
        self.gain = nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return self.gain * x


class RelativeAttention(nnx.Module):
    def __init__(self, scale, *, rngs):
        inner = HEADS * KEY
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.to_qkv, self.to_out = linear(WIDTH, 3 * inner), linear(inner, WIDTH)
        self.scale = scale

    def __call__(self, x, bias):
        n, length, _ = x.shape
        q, k, v = jnp.split(self.to_qkv(x).reshape(n, length, HEADS, 3 * KEY), 3, axis=-1)
        weights = nnx.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) * self.scale + bias)
        return self.to_out(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, length, -1))


class EncoderLayer(nnx.Module):
    def __init__(self, scale, *, rngs):
        self.norms = nnx.List([ScaleNorm(), ScaleNorm()])
        self.attention = RelativeAttention(scale, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x, bias):
        x = x + self.attention(self.norms[0](x), bias)
        return x + self.down(jax.nn.relu(self.up(self.norms[1](x))))


class Encoder(nnx.Module):
    def __init__(self, rngs, scale=1.0, both=True, masked=True, final=True, sign=1):
        self.table = nnx.Param(jnp.zeros((VOCAB, WIDTH)))
        self.biases = nnx.Param(jnp.zeros((8, HEADS)))
        self.layers = nnx.List([EncoderLayer(scale, rngs=rngs) for _ in range(DEPTH)])
        self.norm = ScaleNorm()
        self.both, self.masked, self.final, self.sign = both, masked, final, sign

    def __call__(self, input_ids, attention_mask):
        at = jnp.arange(input_ids.shape[1])
        distance = self.sign * (at[None, :] - at[:, None])
        bias = self.biases[bucket(distance, self.both)].transpose(2, 0, 1)
        if self.masked:
            bias = jnp.where(attention_mask[:, None, None, :] > 0, bias, -1e10)
        x = self.table[input_ids]
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x) if self.final else x


def port(w: Any, **changes: Any) -> Any:
    model = Encoder(nnx.Rngs(0), **changes)
    model.table = nnx.Param(jnp.asarray(w["shared.weight"]))
    first = "encoder.block.0.layer.0.SelfAttention"
    model.biases = nnx.Param(jnp.asarray(w[f"{first}.relative_attention_bias.weight"]))
    model.norm.gain = nnx.Param(jnp.asarray(w["encoder.final_layer_norm.weight"]))
    for i, layer in enumerate(model.layers):
        name = f"encoder.block.{i}.layer"
        for j, norm in enumerate(layer.norms):
            norm.gain = nnx.Param(jnp.asarray(w[f"{name}.{j}.layer_norm.weight"]))
        # (3, H, K, D): the parts of one head stand together in the fused kernel.
        parts = [
            w[f"{name}.0.SelfAttention.{part}.weight"].reshape(HEADS, KEY, WIDTH) for part in "qkv"
        ]
        fused = np.concatenate(parts, axis=1).reshape(-1, WIDTH)
        for linear, kernel in (
            (layer.attention.to_qkv, fused),
            (layer.attention.to_out, w[f"{name}.0.SelfAttention.o.weight"]),
            (layer.up, w[f"{name}.1.DenseReluDense.wi.weight"]),
            (layer.down, w[f"{name}.1.DenseReluDense.wo.weight"]),
        ):
            linear.kernel = nnx.Param(jnp.asarray(kernel.T))
    return model


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **changes), inputs, faults, float32=True)


ATTENTION = "encoder.block.*.layer.0.SelfAttention"
CASES = [
    case("qkv fused by head"),
    case("scores divided by sqrt(K)", Fault(ATTENTION, ("scale-extra",)), scale=KEY**-0.5),
    case(
        "distances with the other sign",
        Fault(ATTENTION, ("position-bias",), (f"{ATTENTION}.relative_attention_bias",)),
        sign=-1,
    ),
    case(
        "padding attended to",
        Fault(ATTENTION, ("mask-missing", "padding"), ("encoder", "")),
        masked=False,
    ),
    case(
        "no norm at the end",
        Fault("encoder.final_layer_norm", ("norm-missing",), ("encoder",)),
        final=False,
    ),
]
