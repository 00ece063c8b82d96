"""A BERT for masked words with token types; a port as a function of flat parameters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HEADS, DEPTH = 41, 16, 2, 3


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCAB, WIDTH)
        self.position_embeddings = nn.Embedding(20, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, ids, types):
        x = self.word_embeddings(ids) + self.token_type_embeddings(types)
        return self.LayerNorm(x + self.position_embeddings(torch.arange(ids.shape[1])))


class BertSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, bias):
        q, k, v = (
            f(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
        return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


class BertLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = BertSelfAttention()
        self.attention_output = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate, self.output = nn.Linear(WIDTH, 33), nn.Linear(33, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x, bias):
        x = self.attention_norm(x + self.attention_output(self.attention(x, bias)))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Predictions(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(VOCAB))

    def forward(self, x, table):
        return self.LayerNorm(F.gelu(self.dense(x))) @ table.T + self.bias


class Pooler(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.activation = nn.Linear(WIDTH, WIDTH), nn.Tanh()

    def forward(self, x):
        return self.activation(self.dense(x[:, 0]))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layer = nn.ModuleList(BertLayer() for _ in range(DEPTH))
        self.pooler, self.predictions = Pooler(), Predictions()

    def forward(self, input_ids, attention_mask, token_type_ids):
        x = self.embeddings(input_ids, token_type_ids)
        bias = (1.0 - attention_mask[:, None, None].to(x.dtype)) * -10000.0
        for layer in self.layer:
            x = layer(x, bias)
        return self.predictions(x, self.embeddings.word_embeddings.weight), self.pooler(x)


def torch_model() -> nn.Module:
    return draw(Bert())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    mask = (np.arange(12) < np.array([[12], [9], [6]])).astype(np.int32)
    ids = rng.integers(1, VOCAB, (3, 12)) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (np.arange(12) >= np.array([[5], [6], [3]])) * mask,
    }


def fused(w: Any) -> Any:
    """Three kernels as one, (depth, 3, heads, size, width)."""
    p = {name: jnp.asarray(x) for name, x in w.items()}
    for kind, shape in (("weight", (3, HEADS, -1, WIDTH)), ("bias", (3, HEADS, -1))):
        p[f"qkv.{kind}"] = jnp.stack(
            [
                jnp.stack(
                    [
                        p.pop(f"layer.{i}.attention.{part}.{kind}")
                        for part in ("query", "key", "value")
                    ]
                ).reshape(shape)
                for i in range(DEPTH)
            ]
        )
    return p


def layer_norm(p: Any, name: str, x: jax.Array, eps: float = 1e-12) -> jax.Array:
    return jax.nn.standardize(x, epsilon=eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def dense(p: Any, name: str, x: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def bert(
    p: Any,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    token_type_ids: jax.Array,
    start: int = 0,
    typed: bool = True,
    act: Any = jnp.tanh,
    out_bias: bool = True,
    soft: Any = jax.nn.softmax,
    pool: Any = lambda x: x[:, 0],
) -> Any:
    n, t = input_ids.shape
    x = p["embeddings.word_embeddings.weight"][input_ids]
    x += jax.lax.dynamic_slice_in_dim(p["embeddings.position_embeddings.weight"], start, t)
    types = jax.nn.one_hot(token_type_ids if typed else jnp.zeros_like(token_type_ids), 2)
    x += types.astype(x.dtype) @ p["embeddings.token_type_embeddings.weight"]
    x = layer_norm(p, "embeddings.LayerNorm", x)
    for i in range(DEPTH):
        name = f"layer.{i}"
        q, k, v = (
            jnp.einsum("ntd,chkd->cnhtk", x, p["qkv.weight"][i])
            + p["qkv.bias"][i][:, None, :, None]
        )
        scores = jnp.einsum("nhqk,nhsk->nhqs", q, k) * (WIDTH // HEADS) ** -0.5
        scores = jnp.where(attention_mask[:, None, None] > 0, scores, scores - 1e4)
        y = jnp.einsum("nhqs,nhsk->nqhk", soft(scores), v).reshape(n, t, WIDTH)
        x = layer_norm(p, f"{name}.attention_norm", x + dense(p, f"{name}.attention_output", y))
        y = jax.nn.gelu(dense(p, f"{name}.intermediate", x), approximate=False)
        x = layer_norm(p, f"{name}.output_norm", x + dense(p, f"{name}.output", y))
    y = jax.nn.gelu(dense(p, "predictions.dense", x), approximate=False)
    y = layer_norm(p, "predictions.LayerNorm", y)
    logits = y @ p["embeddings.word_embeddings.weight"].T
    logits = logits + p["predictions.bias"] if out_bias else logits
    return logits, act(dense(p, "pooler.dense", pool(x)))


def half_softmax(scores: jax.Array) -> jax.Array:
    """Probabilities in bfloat16."""
    return jax.nn.softmax(scores.astype(jnp.bfloat16)).astype(scores.dtype)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(
        name, "function", torch_model, lambda w: (partial(bert, **how), fused(w)), inputs, faults
    )


CASES = [
    case("fused projections"),
    case(
        "all tokens of the first type",
        Fault("embeddings.token_type_embeddings", ("wrong-source", "token-type"), ("embeddings",)),
        typed=False,
    ),
    case(
        "pooled without tanh",
        Fault("pooler.activation", ("activation-missing",), ("pooler",)),
        act=lambda x: x,
    ),
    case("no bias of the vocabulary", Fault("predictions", ("bias-missing",)), out_bias=False),
    case("softmax in bfloat16", Fault("layer.*.attention", ("precision",)), soft=half_softmax),
    case(
        "positions from two, mean pooled",
        Fault("embeddings.position_embeddings", ("position-offset",), ("embeddings",)),
        Fault("pooler", ("pooling",)),
        start=2,
        pool=lambda x: x.mean(1),
    ),
]
