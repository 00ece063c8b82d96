"""RWKV with a loss; a port as a function that scans over time, PyTorch's loops over it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HIDDEN, DEPTH = 37, 14, 23, 3


class TimeMix(nn.Module):
    def __init__(self):
        super().__init__()
        self.decay, self.first = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(3))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )

    def forward(self, x):
        last = self.shift(x)
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        v = self.value(x * self.mix_v + last * (1 - self.mix_v))
        r = self.receptance(x * self.mix_r + last * (1 - self.mix_r)).sigmoid()
        decay = -self.decay.exp()
        above = below = torch.zeros_like(k[:, 0])
        out = []
        for t in range(x.shape[1]):
            bonus = (self.first + k[:, t]).exp()
            out.append((above + bonus * v[:, t]) / (below + bonus))
            above = decay.exp() * above + k[:, t].exp() * v[:, t]
            below = decay.exp() * below + k[:, t].exp()
        return self.output(r * torch.stack(out, 1))


class ChannelMix(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix_k, self.mix_r = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.key, self.value = (
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.Linear(HIDDEN, WIDTH, bias=False),
        )
        self.receptance = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        last = self.shift(x)
        k = torch.relu(self.key(x * self.mix_k + last * (1 - self.mix_k))).square()
        r = self.receptance(x * self.mix_r + last * (1 - self.mix_r)).sigmoid()
        return r * self.value(k)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.att, self.ffn = TimeMix(), ChannelMix()

    def forward(self, x):
        x = x + self.att(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class RWKV(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.ln0 = nn.Embedding(VOCAB, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.ln_out, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.ln0(self.emb(tokens))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_out(x))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def torch_model() -> nn.Module:
    return draw(RWKV())


def inputs() -> Any:
    return (np.random.default_rng(0).integers(0, VOCAB, (2, 15)),)


def convert(w: Any) -> Any:
    layers = [
        {
            name.removeprefix(f"blocks.{i}."): jnp.asarray(x)
            for name, x in w.items()
            if name.startswith(f"blocks.{i}.")
        }
        for i in range(DEPTH)
    ]
    rest = {name: jnp.asarray(x) for name, x in w.items() if not name.startswith("blocks.")}
    return {"layers": jax.tree.map(lambda *xs: jnp.stack(xs), *layers), **rest}


def norm(x: jax.Array, p: Any, name: str) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def lerp(x: jax.Array, last: jax.Array, mix: jax.Array) -> jax.Array:
    return last + (x - last) * mix


def shifted(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def wkv(k: jax.Array, v: jax.Array, rate: jax.Array, first: jax.Array) -> jax.Array:
    """A scan in the log domain: the greatest exponent so far is taken out."""

    def step(carry: Any, kv: Any) -> Any:
        a, b, top = carry
        k, v = kv
        q = jnp.maximum(top, first + k)
        e1, e2 = jnp.exp(top - q), jnp.exp(first + k - q)
        y = (e1 * a + e2 * v) / (e1 * b + e2)
        q = jnp.maximum(top - rate, k)
        e1, e2 = jnp.exp(top - rate - q), jnp.exp(k - q)
        return (e1 * a + e2 * v, e1 * b + e2, q), y

    zero = jnp.zeros_like(k[:, 0])
    start = (zero, zero, zero - 1e30)
    return jax.lax.scan(step, start, (k.swapaxes(0, 1), v.swapaxes(0, 1)))[1].swapaxes(0, 1)


def frozen_wkv(k: jax.Array, v: jax.Array, rate: jax.Array, first: jax.Array) -> jax.Array:
    return wkv(k, v, jax.lax.stop_gradient(rate), first)


def rwkv(
    params: Any,
    tokens: jax.Array,
    mixed: Any = wkv,
    act: Any = lambda x: jnp.square(jax.nn.relu(x)),
    mix: Any = lerp,
    rate: Any = jnp.exp,
    back: int = 1,
    previous: Any = shifted,
) -> Any:
    def block(x: jax.Array, p: Any) -> Any:
        y = norm(x, p, "ln1")
        last = previous(y)
        k, v, r = (
            mix(y, last, p[f"att.mix_{n[0]}"]) @ p[f"att.{n}.weight"].T
            for n in ("key", "value", "receptance")
        )
        y = jax.nn.sigmoid(r) * mixed(k, v, rate(p["att.decay"]), p["att.first"])
        x = x + y @ p["att.output.weight"].T
        y = norm(x, p, "ln2")
        last = shifted(y)
        k = act(lerp(y, last, p["ffn.mix_k"]) @ p["ffn.key.weight"].T)
        r = lerp(y, last, p["ffn.mix_r"]) @ p["ffn.receptance.weight"].T
        return x + jax.nn.sigmoid(r) * (k @ p["ffn.value.weight"].T), None

    x = norm(jnp.take(params["emb.weight"], tokens, axis=0), params, "ln0")
    x = jax.lax.scan(block, x, params["layers"])[0]
    logits = norm(x, params, "ln_out") @ params["head.weight"].T
    log_p = jax.nn.log_softmax(logits[:, : tokens.shape[1] - back])
    loss = -jnp.take_along_axis(log_p, tokens[:, back:, None], -1).mean()
    return {"loss": loss, "logits": logits}


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(
        name, "function", torch_model, lambda w: (partial(rwkv, **how), convert(w)), inputs, faults
    )


CASES = [
    case("scans over layers and time, in the log domain"),
    case(
        "relu not squared",
        Fault("blocks.*.ffn", ("activation",)),
        act=jax.nn.relu,
    ),
    case(
        "old and new mixed the wrong way round",
        Fault("blocks.*.att", ("gate-swap", "wrong-source", "split-order")),
        mix=lambda x, last, mix: x + (last - x) * mix,
    ),
    case(
        "no gradient of the decay",
        Fault("blocks.*.att", ("stopped-gradient",)),
        mixed=frozen_wkv,
    ),
    case("loss two tokens on", Fault("", ("label-shift",)), back=2),
    case(
        "rolled, not shifted, and relu not squared",
        Fault("blocks.*.att.shift", ("padding", "mask-missing", "wrong-source"), ("blocks.*.att",)),
        Fault("blocks.*.ffn", ("activation",)),
        previous=lambda x: jnp.roll(x, 1, axis=1),
        act=jax.nn.relu,
    ),
]
