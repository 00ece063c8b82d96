"""What the tests of causes share: how a port written in numpy is made and its cause looked for.

A port knows nothing of the faults that `porting.causes` plants. For every word there is a port with
that fault; ports without a fault, and with one that no word describes, get none. Sizes are small
and odd, or as the head width demands.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jaxformer.porting.causes import name_cause

B, L, D, H, K = 2, 5, 12, 3, 4


Array = np.ndarray


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def perturbed(module: nn.Module) -> nn.Module:
    """Every parameter and statistic moved, so that unit gains and zero biases show."""
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor += torch.from_numpy(0.2 * rng.normal(size=tuple(tensor.shape)).clip(-1, 1))
        for name, tensor in module.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(tensor.abs() + 0.5)
    return module.eval()


class Weights:
    """The parameters of a module as numpy arrays."""

    def __init__(self, module: nn.Module) -> None:
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers()),
        }
        self.arrays = {name: t.detach().numpy() for name, t in tensors.items()}

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self.arrays else y


def softmax(x: Array, axis: int = -1) -> Array:
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def erf_gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normalise(x: Array, axis: Any = -1, eps: float = 1e-5, centre: bool = True) -> Array:
    z = x - x.mean(axis, keepdims=True) if centre else x
    return z / np.sqrt((z**2).mean(axis, keepdims=True) + eps)


class Port(NamedTuple):
    """A model, its inputs, and the port: a function of the inputs and the name of a fault."""

    model: nn.Module
    args: tuple[Any, ...]
    port: Callable[..., Any]
    kwargs: dict[str, Any] = {}  # noqa: RUF012


def run(case: Port, fault: str) -> Any:
    with torch.no_grad():
        theirs = case.model(*case.args, **case.kwargs)
    as_numpy = [
        a.numpy() if isinstance(a, Tensor) else a for a in (*case.args, *case.kwargs.values())
    ]
    port = case.port(fault, *as_numpy)
    return name_cause(case.model, "", (case.args, case.kwargs), theirs, port)


class RMS(nn.Module):
    """RMSNorm written out, with Gemma's 1 + gain where asked."""

    def __init__(self, width: int, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.one = 1.0 if plus_one else 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * (self.one + self.weight) if self.one else x * self.weight


class HandLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5) * self.g + self.b


def layer_norm_port(module: nn.Module, gain: str = "weight", bias: str = "bias") -> Any:
    w = Weights(module)

    def port(fault: str, x: Array) -> Array:
        eps = {"epsilon": 1e-6, "epsilon of 1e-12": 1e-12, "epsilon unusual": 3.7e-4}.get(
            fault, 1e-5
        )
        axis = 1 if fault == "norm-axis" else -1
        y = normalise(x, axis, eps, fault != "norm-statistics")
        if fault == "norm-missing":
            return x
        if fault == "outside":
            z = x - x.mean(-1, keepdims=True)
            y = z / (np.sqrt((z**2).mean(-1, keepdims=True)) + 1e-5)
        g = {"norm-gain": 1.0, "norm-gain 1+": 1 + w[gain]}.get(fault, w[gain])
        b = 0.0 if fault == "bias-missing" else w[bias]
        if fault == "strange":
            y = np.sort(y, -1) ** 3
        return y * g + b

    return port


def rms_port(module: nn.Module, one: float = 0.0, default_eps: float = 1e-6) -> Any:
    w = Weights(module)

    def port(fault: str, x: Array) -> Array:
        y = normalise(
            x, eps=1e-5 if fault == "epsilon" else default_eps, centre=fault == "norm-statistics"
        )
        g = {"norm-gain": w["weight"] + 1 - 2 * one + one, "norm-gain none": 1.0}
        return y * (g[fault] if fault in g else one + w["weight"])

    return port


def norm_cases() -> dict[str, Port]:
    x = 0.3 * draw(B, L, D)
    built_in, hand = perturbed(nn.LayerNorm(D)), perturbed(HandLayerNorm(D))
    rms, gemma, torch_rms = (
        perturbed(RMS(D)),
        perturbed(RMS(D, True)),
        perturbed(nn.RMSNorm(D, 1e-6)),
    )
    gemma_port = rms_port(gemma, 1.0)
    return {
        "LayerNorm": Port(built_in, (x,), layer_norm_port(built_in)),
        "LayerNorm by hand": Port(hand, (x,), layer_norm_port(hand, "g", "b")),
        "RMSNorm by hand": Port(rms, (x,), rms_port(rms)),
        "RMSNorm": Port(torch_rms, (x,), rms_port(torch_rms)),
        "Gemma's norm": Port(
            gemma,
            (x,),
            lambda f, x: (
                gemma_port({"norm-gain": "no one"}.get(f, f), x)
                if f != "norm-gain"
                else normalise(x, eps=1e-6, centre=False) * Weights(gemma)["weight"]
            ),
        ),
    }


def convolve(
    x: Array, kernel: Array, pad: Any = ((1, 1), (1, 1)), stride: int = 1, mode: str = "constant"
) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), *pad), mode=mode)
    h, w = kernel.shape[2:]
    rows, columns = x.shape[2] - h + 1, x.shape[3] - w + 1
    y = sum(
        np.einsum("bchw,oc->bohw", x[:, :, i : i + rows, j : j + columns], kernel[:, :, i, j])
        for i in range(h)
        for j in range(w)
    )
    return y[:, :, ::stride, ::stride]


def check(cause: Any, word: str | None) -> None:
    if word is None:
        assert cause is None, cause
    else:
        assert cause is not None, f"not named: {word}"
        assert cause.word == word, cause


class HandAttention(nn.Module):
    """Attention as in many repositories: fused or separate projections, masks, by hand or by F."""

    def __init__(self, fused: bool, style: str, heads: int = H, kv_heads: int = H) -> None:
        super().__init__()
        self.heads, self.kv, self.style = heads, kv_heads, style
        if fused:
            self.qkv = nn.Linear(D, 3 * D)
        else:
            self.q = nn.Linear(D, D)
            self.k = nn.Linear(D, kv_heads * (D // heads))
            self.v = nn.Linear(D, kv_heads * (D // heads))
        self.fused = fused
        self.out = nn.Linear(D, D)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        B, L, _ = x.shape
        K = D // self.heads
        source = x if memory is None else memory
        M = source.size(1)
        if self.fused:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q(x), self.k(source), self.v(source)
        q = q.view(B, L, self.heads, K).transpose(1, 2)
        k = k.view(B, M, self.kv, K).transpose(1, 2)
        v = v.view(B, M, self.kv, K).transpose(1, 2)
        if self.kv != self.heads:
            k = k.repeat_interleave(self.heads // self.kv, 1)
            v = (
                v[:, :, None]
                .expand(B, self.kv, self.heads // self.kv, M, K)
                .reshape(B, self.heads, M, K)
            )
        causal = (
            torch.tril(torch.ones(L, M, dtype=torch.bool))
            if memory is None
            else torch.ones(L, M, dtype=torch.bool)
        )
        keep = causal[None, None]
        if padding is not None:
            keep = keep & padding[:, None, None, :]
        if self.style == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(K)
            if self.style == "add":
                scores = scores + torch.zeros(1).masked_fill(~keep, torch.finfo(torch.float32).min)
            else:
                scores = scores.masked_fill(~keep, -1e9)
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(B, L, D))


def attention_port(model: HandAttention, memory: bool = False) -> Any:
    w, heads, kv = Weights(model), model.heads, model.kv
    K = D // heads

    def port(fault: str, x: Array, source: Any = None, padding: Any = None) -> Array:
        source = x if source is None else source
        n, M = x.shape[1], source.shape[1]
        if fault == "wrong-source":
            source = x
        if model.fused:
            y = w.linear("qkv", x)
            if fault == "qkv-order":
                k, q, v = np.split(y, 3, -1)
            elif fault == "qkv-order by head":
                q, k, v = (
                    a.reshape(B, n, D) for a in np.moveaxis(y.reshape(B, n, heads, 3, K), 3, 0)
                )
            else:
                q, k, v = np.split(y, 3, -1)
        else:
            q, k, v = w.linear("q", x), w.linear("k", source), w.linear("v", source)
            if fault == "transposed-kernel":
                q = x @ w["q.weight"] + w["q.bias"]
            if fault == "bias-missing":
                q = x @ w["q.weight"].T
            if fault == "qkv-order":
                q, k = w.linear("k", x), w.linear("q", source)
        M = source.shape[1]

        def split(a: Array, h: int) -> Array:
            if fault == "head-order":
                return a.reshape(B, -1, K, h).transpose(0, 3, 1, 2)
            if fault == "head-order flat":
                return a.reshape(B, h, -1, K)
            return a.reshape(B, -1, h, K).transpose(0, 2, 1, 3)

        q, k, v = split(q, heads), split(k, kv), split(v, kv)
        r = heads // kv
        if fault == "kv-repeat":
            k, v = np.tile(k, (1, r, 1, 1)), np.tile(v, (1, r, 1, 1))
        elif fault == "kv-repeat of k":
            k, v = np.tile(k, (1, r, 1, 1)), np.repeat(v, r, 1)
        else:
            k, v = np.repeat(k, r, 1), np.repeat(v, r, 1)
        scale = {
            "scale-missing": 1.0,
            "scale-extra": 1 / K,
            "scale by width": 1 / math.sqrt(D),
        }.get(fault, 1 / math.sqrt(K))
        s = q @ k.transpose(0, 1, 3, 2) * scale
        i, j = np.arange(n)[:, None], np.arange(M)[None]
        shift = {"mask-shifted": 1, "mask-shifted back": -1}.get(fault, 0)
        causal = (j <= i + shift) if model_is_causal(memory) else np.ones((n, M), bool)
        if fault == "causal missing":
            causal = np.ones((n, M), bool)
        if fault == "mask-inverted future":
            causal = j >= i
        keep = np.broadcast_to(causal, s.shape)
        if padding is not None and fault != "padding missing":
            axis = padding[:, None, None, :]
            if fault == "mask-source":
                axis = padding[:, None, :, None]
            keep = keep & axis
        if fault == "mask-missing":
            keep = np.ones_like(keep)
        if fault == "mask-inverted":
            keep = ~keep
        fill = {"mask-fill": -10.0, "mask-fill 0": 0.0, "mask-fill 1e-9": 1e-9}.get(fault, -1e9)
        s = np.where(keep, s, fill)
        p = softmax(s, -2 if fault == "softmax-axis" else -1)
        if fault == "mask-fill late":
            p = softmax(q @ k.transpose(0, 1, 3, 2) * scale) * keep
        y = p @ v
        if fault == "strange":
            y = np.sort(y, 2)
        y = (
            y.reshape(B, n, D)
            if fault == "head-order merge"
            else y.transpose(0, 2, 1, 3).reshape(B, n, D)
        )
        return w.linear("out", y)

    return port


def model_is_causal(memory: bool) -> bool:
    return not memory


PADDING = torch.tensor([[True] * 5, [True, True, True, False, False]])


def mha_port(model: nn.MultiheadAttention) -> Any:
    own = HandAttention(True, "fill")
    arrays = Weights(model).arrays
    names = {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "out.weight",
        "out_proj.bias": "out.bias",
    }
    own.load_state_dict({names[name]: torch.from_numpy(a) for name, a in arrays.items()})
    port = attention_port(own)
    return lambda fault, x, *_: (port(fault, x, None, PADDING.numpy()), None)
