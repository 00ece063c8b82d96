"""nn.Transformer with padding on both sides; a port in Linen."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HEADS, HIDDEN, DEPTH = 29, 18, 2, 31, 2


def sinusoids(length: int, width: int) -> np.ndarray:
    angle = np.arange(length)[:, None] * 10000 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, width).astype(np.float32)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, WIDTH), nn.Embedding(VOCAB, WIDTH)
        self.register_buffer("positions", torch.from_numpy(sinusoids(32, WIDTH)))
        self.transformer = nn.Transformer(
            WIDTH, HEADS, DEPTH, DEPTH, HIDDEN, dropout=0.0, batch_first=True
        )
        self.transformer.encoder.use_nested_tensor = False  # a prototype, which warns
        self.generator = nn.Linear(WIDTH, VOCAB)

    def embed(self, table, tokens):
        return table(tokens) * math.sqrt(WIDTH) + self.positions[: tokens.shape[1]]

    def forward(self, source, target):
        T = target.shape[1]
        y = self.transformer(
            self.embed(self.source, source),
            self.embed(self.target, target),
            tgt_mask=torch.triu(torch.ones(T, T, dtype=torch.bool), 1),
            src_key_padding_mask=source == 0,
            tgt_key_padding_mask=target == 0,
            memory_key_padding_mask=source == 0,
        )
        return self.generator(y)


def torch_model() -> nn.Module:
    return draw(Translator())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    source, target = rng.integers(1, VOCAB, (3, 11)), rng.integers(1, VOCAB, (3, 11))
    source[1, 7:] = source[2, 9:] = target[0, 8:] = 0
    return {"source": source, "target": target}


class FFN(linen.Module):
    act: Callable

    @linen.compact
    def __call__(self, x):
        return linen.Dense(WIDTH)(self.act(linen.Dense(HIDDEN)(x)))


Norm = partial(linen.LayerNorm, epsilon=1e-5)
Attention = partial(linen.MultiHeadDotProductAttention, num_heads=HEADS)


class EncoderLayer(linen.Module):
    act: Callable

    @linen.compact
    def __call__(self, x, mask):
        x = Norm(name="n1")(x + Attention(name="self")(x, x, mask=mask))
        return Norm(name="n2")(x + FFN(self.act, name="ffn")(x))


class DecoderLayer(linen.Module):
    act: Callable
    from_target: bool

    @linen.compact
    def __call__(self, x, memory, mask, memory_mask):
        x = Norm(name="n1")(x + Attention(name="self")(x, x, mask=mask))
        source = x if self.from_target else memory
        x = Norm(name="n2")(x + Attention(name="cross")(x, source, mask=memory_mask))
        return Norm(name="n3")(x + FFN(self.act, name="ffn")(x))


class Seq2Seq(linen.Module):
    """Post-norm, with the norms that nn.Transformer puts after each stack."""

    final: bool = True
    scale: float = math.sqrt(WIDTH)
    memory_of: str = "source"
    diagonal: int = 0
    act: Callable = linen.relu
    halves: bool = False
    from_target: bool = False
    padded: bool = True

    @linen.compact
    def __call__(self, source, target):
        table = sinusoids(32, WIDTH)
        if self.halves:
            table = np.concatenate([table[:, ::2], table[:, 1::2]], axis=1)
        x = linen.Embed(VOCAB, WIDTH, name="in")(source) * self.scale + table[: source.shape[1]]
        y = linen.Embed(VOCAB, WIDTH, name="out")(target) * self.scale + table[: target.shape[1]]
        keep = {"source": source != 0, "target": target != 0}
        T = target.shape[1]
        causal = jnp.tril(jnp.ones((T, T), bool), self.diagonal)
        key_mask = keep["source"][:, None, None] if self.padded else None
        for i in range(DEPTH):
            x = EncoderLayer(self.act, name=f"enc{i}")(x, key_mask)
        x = Norm(name="enc_norm")(x) if self.final else x
        mask = causal & keep["target"][:, None, None]
        for i in range(DEPTH):
            y = DecoderLayer(self.act, self.from_target, name=f"dec{i}")(
                y, x, mask, keep[self.memory_of][:, None, None]
            )
        y = Norm(name="dec_norm")(y)
        return linen.Dense(VOCAB, name="logits")(y)


def convert(w: Any, drop: bool = False) -> Any:
    w = {name.removeprefix("transformer."): jnp.asarray(x) for name, x in w.items()}

    def dense(name: str) -> Any:
        return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}

    def norm(name: str) -> Any:
        return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    def attention(name: str) -> Any:
        kernels = w[f"{name}.in_proj_weight"].reshape(3, HEADS, -1, WIDTH).transpose(0, 3, 1, 2)
        biases = w[f"{name}.in_proj_bias"].reshape(3, HEADS, -1)
        parts = zip(("query", "key", "value"), kernels, biases, strict=True)
        out = dense(f"{name}.out_proj")
        return {
            **{part: {"kernel": kernel, "bias": bias} for part, kernel, bias in parts},
            "out": {**out, "kernel": out["kernel"].reshape(HEADS, -1, WIDTH)},
        }

    def ffn(name: str) -> Any:
        return {"Dense_0": dense(f"{name}.linear1"), "Dense_1": dense(f"{name}.linear2")}

    params = {
        "in": {"embedding": w["source.weight"]},
        "out": {"embedding": w["target.weight"]},
        "dec_norm": norm("decoder.norm"),
        "logits": dense("generator"),
    }
    if not drop:
        params["enc_norm"] = norm("encoder.norm")
    for i in range(DEPTH):
        name = f"encoder.layers.{i}"
        params[f"enc{i}"] = {
            "self": attention(f"{name}.self_attn"),
            "ffn": ffn(name),
            **{f"n{j}": norm(f"{name}.norm{j}") for j in (1, 2)},
        }
        name = f"decoder.layers.{i}"
        params[f"dec{i}"] = {
            "self": attention(f"{name}.self_attn"),
            "cross": attention(f"{name}.multihead_attn"),
            "ffn": ffn(name),
            **{f"n{j}": norm(f"{name}.norm{j}") for j in (1, 2, 3)},
        }
    return {"params": params}


def port(w: Any, **how: Any) -> Any:
    return Seq2Seq(**how), convert(w, drop=not how.get("final", True))


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "linen", torch_model, partial(port, **how), inputs, faults)


LAYERS = ("transformer.decoder.layers.*", "transformer.decoder.layers.*.multihead_attn")
CASES = [
    case("flax's attention"),
    case(
        "no norm after the encoder",
        Fault("transformer.encoder.norm", ("norm-missing",), ("transformer.encoder",)),
        final=False,
    ),
    case(
        "memory masked by the target's padding",
        Fault(LAYERS[1], ("mask-source",), (LAYERS[0],)),
        memory_of="target",
    ),
    case("sinusoids in halves", Fault("", ("sin-cos-order", "frequencies")), halves=True),
    case(
        "embeddings not scaled, gelu in the layers",
        Fault("", ("embedding-scale", "scale-missing"), ("source", "target")),
        Fault(
            "transformer.*coder.layers.*",
            ("activation",),
            ("transformer.*coder.layers.*.linear?",),
        ),
        scale=1.0,
        act=linen.gelu,
    ),
    case(
        "cross attention to the target",
        Fault(LAYERS[1], ("wrong-source",), (LAYERS[0],)),
        from_target=True,
    ),
]
