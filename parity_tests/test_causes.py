"""The cause of a port's fault, by experiment: models in PyTorch, faulty ports in numpy.

A port is written out in numpy and knows nothing of the faults that `porting.causes` plants. For
every word there is a port with that fault; ports without a fault, and with one that no word
describes, get none. Sizes are small and odd, or as the head width demands.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jaxformer.porting.causes import Context, name_cause
from jaxformer.porting.causes.graph import tensors_of
from jaxformer.porting.causes.record import record
from jaxformer.porting.causes.sites import mutants
from jaxformer.porting.causes.table import GENERAL, SPECIFIC

B, L, D, H, K = 2, 5, 12, 3, 4
Array = np.ndarray


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


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


# Norms


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


class Channels(nn.Module):
    """GroupNorm, grouped convolution, BatchNorm: by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer: nn.Module = {
            "group": lambda: nn.GroupNorm(3, D),
            "batch": lambda: nn.BatchNorm2d(D),
            "conv": lambda: nn.Conv2d(D, D, 3, padding=1, groups=3),
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def channels_port(kind: str, module: nn.Module) -> Any:
    w = Weights(module)

    def affine(y: Array) -> Array:
        return y * w["layer.weight"][:, None, None] + w["layer.bias"][:, None, None]

    def group(fault: str, x: Array) -> Array:
        G = 4 if fault == "groups" else 3
        if fault == "groups strided":
            z = x.reshape(B, D // G, G, *x.shape[2:])
            return affine(normalise(z, (1, 3, 4)).reshape(x.shape))
        return affine(normalise(x.reshape(B, G, -1), -1).reshape(x.shape))

    def batch(fault: str, x: Array) -> Array:
        if fault == "batch-statistics":
            return affine(normalise(x, (0, 2, 3)))
        eps = 1e-3 if fault == "epsilon" else 1e-5
        mean, var = w["layer.running_mean"], w["layer.running_var"]
        return affine((x - mean[:, None, None]) / np.sqrt(var[:, None, None] + eps))

    def conv(fault: str, x: Array) -> Array:
        kernel, G = w["layer.weight"], 3
        order = np.arange(D).reshape(D // G, G).T.reshape(-1) if fault == "groups" else np.arange(D)
        y = np.concatenate(
            [convolve(x[:, order[g * 4 : g * 4 + 4]], kernel[g * 4 : g * 4 + 4]) for g in range(G)],
            1,
        )
        return y + w["layer.bias"][:, None, None]

    return {"group": group, "batch": batch, "conv": conv}[kind]


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


NORMS = [
    ("LayerNorm", "epsilon", "epsilon"),
    ("LayerNorm", "epsilon of 1e-12", "epsilon"),
    ("LayerNorm", "outside", "epsilon"),
    ("LayerNorm", "norm-axis", "norm-axis"),
    ("LayerNorm", "norm-missing", "norm-missing"),
    ("LayerNorm", "norm-gain", "norm-gain"),
    ("LayerNorm", "norm-gain 1+", "norm-gain"),
    ("LayerNorm", "bias-missing", "bias-missing"),
    ("LayerNorm", "norm-statistics", "norm-statistics"),
    ("LayerNorm", "strange", None),
    ("LayerNorm", "", None),
    ("LayerNorm by hand", "epsilon", "epsilon"),
    ("LayerNorm by hand", "epsilon unusual", "epsilon"),
    ("LayerNorm by hand", "norm-axis", "norm-axis"),
    ("LayerNorm by hand", "norm-missing", "norm-missing"),
    ("LayerNorm by hand", "norm-gain", "norm-gain"),
    ("LayerNorm by hand", "norm-gain 1+", "norm-gain"),
    ("LayerNorm by hand", "bias-missing", "bias-missing"),
    ("LayerNorm by hand", "strange", None),
    ("LayerNorm by hand", "", None),
    ("RMSNorm by hand", "epsilon", "epsilon"),
    ("RMSNorm by hand", "norm-gain", "norm-gain"),
    ("RMSNorm by hand", "norm-gain none", "norm-gain"),
    ("RMSNorm by hand", "", None),
    ("RMSNorm", "epsilon", "epsilon"),
    ("RMSNorm", "norm-gain none", "norm-gain"),
    ("RMSNorm", "norm-statistics", "norm-statistics"),
    ("RMSNorm", "", None),
    ("Gemma's norm", "norm-gain", "norm-gain"),
    ("Gemma's norm", "norm-gain none", "norm-gain"),
    ("Gemma's norm", "", None),
]


def check(cause: Any, word: str | None) -> None:
    if word is None:
        assert cause is None, cause
    else:
        assert cause is not None, f"not named: {word}"
        assert cause.word == word, cause


@pytest.mark.parametrize(("model", "fault", "word"), NORMS)
def test_norms(model: str, fault: str, word: str | None) -> None:
    check(run(norm_cases()[model], fault), word)


@pytest.mark.parametrize(
    ("kind", "fault", "word"),
    [
        ("group", "groups", "groups"),
        ("group", "groups strided", "groups"),
        ("group", "", None),
        ("batch", "batch-statistics", "batch-statistics"),
        ("batch", "epsilon", "epsilon"),
        ("batch", "", None),
        ("conv", "groups", "groups"),
        ("conv", "", None),
    ],
)
def test_channels(kind: str, fault: str, word: str | None) -> None:
    model = perturbed(Channels(kind))
    check(run(Port(model, (draw(B, D, 3, 5),), channels_port(kind, model)), fault), word)


# Attention


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
SELF = [
    *(("", None), ("scale-missing", "scale-missing"), ("scale-extra", "scale-extra")),
    *(("scale by width", "scale-extra"), ("softmax-axis", "softmax-axis"), ("strange", None)),
    *(("causal missing", "mask-missing"), ("padding missing", "mask-missing")),
    *(("mask-missing", "mask-missing"), ("mask-inverted", "mask-inverted")),
    *(("mask-inverted future", "mask-inverted"), ("mask-shifted", "mask-shifted")),
    *(("mask-source", "mask-source"), ("mask-fill", "mask-fill"), ("mask-fill 0", "mask-fill")),
    *(("mask-fill late", "mask-fill"), ("mask-fill 1e-9", "mask-fill")),
    *(("head-order", "head-order"), ("head-order flat", "head-order")),
    *(("head-order merge", "head-order"), ("qkv-order", "qkv-order")),
]


@pytest.mark.parametrize("style", ["fill", "add", "sdpa"])
@pytest.mark.parametrize(("fault", "word"), SELF)
def test_self_attention(style: str, fault: str, word: str | None) -> None:
    model = perturbed(HandAttention(True, style))
    check(run(Port(model, (draw(B, L, D), None, PADDING), attention_port(model)), fault), word)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("wrong-source", "wrong-source"), ("bias-missing", "bias-missing")),
        *(("transposed-kernel", "transposed-kernel"), ("qkv-order", "qkv-order")),
        *(
            ("scale-missing", "scale-missing"),
            ("mask-missing", "mask-missing"),
            ("mask-source", "mask-source"),
        ),
    ],
)
def test_cross_attention(fault: str, word: str | None) -> None:
    model = perturbed(HandAttention(False, "fill"))
    memory = draw(B, L, D, seed=1)
    check(
        run(Port(model, (draw(B, L, D), memory, PADDING), attention_port(model, True)), fault), word
    )


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("kv-repeat", "kv-repeat"), ("kv-repeat of k", "kv-repeat")),
        *(("mask-shifted back", "mask-shifted"), ("qkv-order by head", None)),
    ],
)
def test_grouped_query_attention(fault: str, word: str | None) -> None:
    model = perturbed(HandAttention(False, "fill", heads=6, kv_heads=3))
    check(run(Port(model, (draw(B, L, D),), attention_port(model)), fault), word)


def test_fused_projection_by_head() -> None:
    model = perturbed(HandAttention(True, "sdpa"))
    check(
        run(Port(model, (draw(B, L, D),), attention_port(model)), "qkv-order by head"), "qkv-order"
    )


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


@pytest.mark.parametrize(
    ("fault", "word"),
    [row for row in SELF if row[0] not in ("mask-inverted", "mask-source", "mask-fill 1e-9")],
)
def test_torch_multi_head_attention(fault: str, word: str | None) -> None:
    model = perturbed(nn.MultiheadAttention(D, H, batch_first=True))
    x = draw(B, L, D)
    kwargs = {
        "key_padding_mask": ~PADDING,
        "attn_mask": torch.ones(L, L).triu(1).bool(),
        "need_weights": False,
    }
    check(run(Port(model, (x, x, x), mha_port(model), kwargs), fault), word)


class Biased(nn.Module):
    """Attention with relative positions as T5 has them, or ALiBi, and no scale."""

    def __init__(self, alibi: bool) -> None:
        super().__init__()
        self.alibi = alibi
        self.q, self.k, self.v = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.relative = nn.Embedding(9, H)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (H, K)).transpose(1, 2) for f in (self.q, self.k, self.v))
        at = torch.arange(x.size(1))
        distance = at[None, :] - at[:, None]
        if self.alibi:
            slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H)
            bias = slopes[:, None, None] * -distance.abs()
        else:
            bias = self.relative(distance.clamp(-4, 4) + 4).permute(2, 0, 1)
        scores = q @ k.transpose(-1, -2) + bias
        return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def biased_port(model: Biased) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        q, k, v = (w.linear(n, x).reshape(B, L, H, K).transpose(0, 2, 1, 3) for n in "qkv")
        distance = np.arange(L)[None, :] - np.arange(L)[:, None]
        if fault == "sign":
            distance = -distance
        if model.alibi:
            start = 0 if fault == "slopes" else 1
            bias = (2.0 ** (-8 * np.arange(start, H + start) / H))[:, None, None] * -abs(distance)
        else:
            bias = w["relative.weight"][distance + 4].transpose(2, 0, 1)
        if fault == "missing":
            bias = 0 * bias
        s = q @ k.transpose(0, 1, 3, 2) * (K**-0.5 if fault == "scale-extra" else 1) + bias
        return (softmax(s) @ v).transpose(0, 2, 1, 3).reshape(B, L, D)

    return port


@pytest.mark.parametrize(
    ("alibi", "fault", "word"),
    [
        (False, "", None),
        (False, "sign", "position-bias"),
        (False, "missing", "position-bias"),
        (False, "scale-extra", "scale-extra"),
        (True, "", None),
        (True, "slopes", "position-bias"),
        (True, "missing", "position-bias"),
    ],
)
def test_position_bias(alibi: bool, fault: str, word: str | None) -> None:
    model = perturbed(Biased(alibi))
    check(run(Port(model, (draw(B, L, D),), biased_port(model)), fault), word)


# Positions


R = 8
"""The head width where pairs of it turn: more than two frequencies."""


class RotaryAttention(nn.Module):
    """Rotary attention: by halves (Llama of Hugging Face), by pairs, or with complex numbers."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v = (nn.Linear(D, H * R, bias=False) for _ in range(3))
        self.register_buffer("inv_freq", 10_000.0 ** (-torch.arange(0, R, 2) / R))

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.size(-2))[:, None] * self.inv_freq
        if self.form == "halves":
            table = torch.cat([angles, angles], -1)
            x1, x2 = x[..., : R // 2], x[..., R // 2 :]
            return x * table.cos() + torch.cat((-x2, x1), -1) * table.sin()
        if self.form == "pairs":
            a, b = x[..., ::2], x[..., 1::2]
            c, s = angles.cos(), angles.sin()
            return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(B, -1, H, R).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return y.transpose(1, 2).reshape(B, -1, H * R)


def rotary_port(model: RotaryAttention) -> Any:
    w = Weights(model)

    def rotate(x: Array, fault: str) -> Array:
        base = {"rotary-base": 5e5, "rotary-base 1e6": 1e6}.get(fault, 1e4)
        exponents = np.arange(0, R, 2) / R
        if fault == "frequencies":
            exponents = np.arange(R // 2) / R
        angles = np.arange(x.shape[2])[:, None] * base**-exponents
        if fault == "axis":
            angles = (np.arange(H)[:, None] * base**-exponents)[:, None]
        c, s = np.cos(angles), np.sin(angles)
        if fault == "sin-cos-order":
            c, s = s, c
        if fault == "direction":
            s = -s
        halves = (model.form == "halves") != (fault == "rotary-form")
        if halves:
            a, b = np.split(x, 2, -1)
            return np.concatenate([a * c - b * s, a * s + b * c], -1)
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

    def port(fault: str, x: Array) -> Array:
        n = x.shape[1]
        q, k, v = (w.linear(name, x).reshape(B, n, H, R).transpose(0, 2, 1, 3) for name in "qkv")
        k = k if fault == "keys not turned" else rotate(k, fault)
        s = rotate(q, fault) @ k.transpose(0, 1, 3, 2) / math.sqrt(R)
        s = np.where(np.tri(n, dtype=bool), s, -np.inf)
        return (softmax(s) @ v).transpose(0, 2, 1, 3).reshape(B, n, H * R)

    return port


@pytest.mark.parametrize("form", ["halves", "pairs", "complex"])
@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("rotary-form", "rotary-form"), ("rotary-base", "rotary-base")),
        *(("rotary-base 1e6", "rotary-base"), ("frequencies", "frequencies")),
        *(("sin-cos-order", "sin-cos-order"), ("keys not turned", "rotary-form")),
        ("axis", "rotary-form"),
    ],
)
def test_rotary(form: str, fault: str, word: str | None) -> None:
    model = perturbed(RotaryAttention(form))
    with torch.no_grad():
        model.inv_freq.copy_(RotaryAttention(form).inv_freq)
    check(run(Port(model, (draw(B, 7, D),), rotary_port(model)), fault), word)


class Embedded(nn.Module):
    """Tokens and positions: learned or sinusoidal."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, D, padding_idx=0)
        self.positions = nn.Embedding(13, D)
        self.learned = learned
        at, i = torch.arange(13)[:, None], torch.arange(0, D, 2)
        table = torch.zeros(13, D)
        table[:, 0::2] = torch.sin(at * torch.exp(i * (-math.log(10_000.0) / D)))
        table[:, 1::2] = torch.cos(at * torch.exp(i * (-math.log(10_000.0) / D)))
        self.register_buffer("table", table)
        self.norm = nn.LayerNorm(D)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        if self.learned:
            x = x + self.positions(torch.arange(ids.size(1)) + 2)
        else:
            x = x * math.sqrt(D) + self.table[: ids.size(1)]
        return self.norm(x)


def embedded_port(model: Embedded) -> Any:
    w = Weights(model)

    def port(fault: str, ids: Array) -> Array:
        x = w["tokens.weight"][ids]
        at = np.arange(ids.shape[1])
        if fault == "padding":
            x = x * (ids != 0)[..., None]
        if model.learned:
            x = x * (math.sqrt(D) if fault == "embedding-scale" else 1)
            x = x + w["positions.weight"][at + {"position-offset": 0, "one": 1}.get(fault, 2)]
        else:
            x = x * (1 if fault == "embedding-scale" else math.sqrt(D))
            i = np.arange(0, D, 2)
            exponents = i / D
            if fault == "frequencies":
                exponents = i / (D - 2)
            if fault == "position-offset":
                at = at + 1
            angles = at[:, None] * (1e3 if fault == "base" else 1e4) ** -exponents
            s, c = np.sin(angles), np.cos(angles)
            if fault == "sin-cos-order":
                s, c = c, s
            table = np.stack([s, c], -1).reshape(len(at), D)
            if fault == "halves":
                table = np.concatenate([s, c], -1)
            x = x + table * (math.sqrt(D) if fault == "positions scaled" else 1)
        return normalise(x) * w["norm.weight"] + w["norm.bias"]

    return port


@pytest.mark.parametrize(
    ("learned", "fault", "word"),
    [
        (True, "", None),
        (True, "position-offset", "position-offset"),
        (True, "one", "position-offset"),
        (True, "embedding-scale", "embedding-scale"),
        (True, "padding", "padding"),
        (False, "", None),
        (False, "embedding-scale", "embedding-scale"),
        (False, "positions scaled", "embedding-scale"),
        (False, "frequencies", "frequencies"),
        (False, "base", "frequencies"),
        (False, "position-offset", "position-offset"),
        (False, "sin-cos-order", "sin-cos-order"),
        (False, "halves", "sin-cos-order"),
    ],
)
def test_embeddings(learned: bool, fault: str, word: str | None) -> None:
    model = perturbed(Embedded(learned))
    with torch.no_grad():
        model.table.copy_(Embedded(False).table)
    ids = torch.tensor([[3, 5, 0, 7, 0], [1, 2, 9, 4, 10]])
    check(run(Port(model, (ids,), embedded_port(model)), fault), word)


# Blocks


class Block(nn.Module):
    """A block before or after whose branches are norms: an MLP, gated or not."""

    def __init__(self, kind: str, act: str) -> None:
        super().__init__()
        self.kind, self.act = kind, act
        self.norm, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.up, self.gate, self.down = nn.Linear(D, 7), nn.Linear(D, 7), nn.Linear(7, D)
        self.dropout = nn.Dropout(0.1)

    def activate(self, x: Tensor) -> Tensor:
        if self.act == "new gelu":
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
        if self.act == "swish":
            return x * torch.sigmoid(x)
        return {"gelu": F.gelu, "leaky": F.leaky_relu, "relu": F.relu}[self.act](x)

    def mlp(self, x: Tensor) -> Tensor:
        if self.act == "swish":
            return self.down(self.activate(self.gate(x)) * self.up(x))
        return self.down(self.activate(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pre":
            x = x + self.dropout(self.mlp(self.norm(x)))
            return x + self.dropout(torch.tanh(self.norm2(x)))
        x = self.norm(x + self.dropout(self.mlp(x)))
        return self.norm2(x + self.dropout(torch.tanh(x)))


def block_port(model: Block) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        def norm(x: Array, name: str = "norm") -> Array:
            eps = 1e-6 if fault == "epsilon" else 1e-5
            return normalise(x, eps=eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

        acts: dict[str, Any] = {
            "gelu": erf_gelu,
            "new gelu": tanh_gelu,
            "swish": silu,
            "leaky": lambda x: np.where(x > 0, x, 0.01 * x),
            "relu": lambda x: np.maximum(x, 0),
        }
        act = acts[model.act]
        if fault == "gelu":
            act = tanh_gelu if model.act == "gelu" else erf_gelu
        act = {
            "activation": acts["relu"],
            "activation silu": silu,
            "activation-slope": lambda x: np.where(x > 0, x, 0.2 * x),
            "activation-missing": lambda x: x,
        }.get(fault, act)

        def mlp(x: Array) -> Array:
            up, gate = w.linear("up", x), w.linear("gate", x)
            h = act(up)
            if model.act == "swish":
                h = gate * act(up) if fault == "gate-swap" else act(gate) * up
            return w.linear("down", h)

        x0 = x
        if (model.kind == "pre") != (fault == "norm-placement"):
            n = norm(x)
            base = {"residual": 0.0, "residual normed": n}.get(fault, x)
            x = base + mlp(x if fault == "norm-missing" else n)
            x = x + np.tanh(norm(x, "norm2"))
        else:
            x = norm((0 if fault == "residual" else x) + mlp(x))
            x = norm(x + np.tanh(x), "norm2")
        if fault == "dropout-on":
            kept = np.random.default_rng(3).random(x.shape) < 0.8
            return x * kept / 0.8
        if fault == "output-scale":
            return 0.37 * x
        if fault == "float32":
            return x.astype(np.float32).astype(np.float64)
        return np.sort(x, 1) + x0 if fault == "strange" else x

    return port


@pytest.mark.parametrize(
    ("kind", "act", "fault", "word"),
    [
        ("pre", "gelu", "", None),
        ("pre", "gelu", "gelu", "gelu"),
        ("pre", "new gelu", "", None),
        ("pre", "new gelu", "gelu", "gelu"),
        ("pre", "new gelu", "activation", "activation"),
        ("post", "gelu", "activation silu", "activation"),
        ("pre", "relu", "activation-missing", "activation-missing"),
        ("pre", "leaky", "activation-slope", "activation-slope"),
        ("post", "leaky", "activation", "activation"),
        ("pre", "swish", "", None),
        ("pre", "swish", "gate-swap", "gate-swap"),
        ("pre", "swish", "activation", "activation"),
        ("pre", "relu", "norm-placement", "norm-placement"),
        ("post", "gelu", "norm-placement", "norm-placement"),
        ("pre", "relu", "residual", "residual"),
        ("pre", "relu", "residual normed", "residual"),
        ("post", "relu", "residual", "residual"),
        ("pre", "relu", "norm-missing", "norm-missing"),
        ("post", "relu", "epsilon", "epsilon"),
        ("post", "relu", "dropout-on", "dropout-on"),
        ("post", "relu", "output-scale", "output-scale"),
        ("post", "relu", "float32", "precision"),
        ("post", "relu", "strange", None),
        ("post", "relu", "", None),
    ],
)
def test_blocks(kind: str, act: str, fault: str, word: str | None) -> None:
    model = perturbed(Block(kind, act))
    check(run(Port(model, (draw(B, L, D),), block_port(model)), fault), word)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_encoder_layer(norm_first: bool) -> None:
    """nn.TransformerEncoderLayer: norms elsewhere, ReLU for GELU, no residual of the attention."""
    layer = perturbed(
        nn.TransformerEncoderLayer(
            D, H, 7, batch_first=True, norm_first=norm_first, activation="gelu"
        )
    )
    w = Weights(layer)
    attend = mha_port(layer.self_attn)

    def port(fault: str, x: Array) -> Array:
        def norm(x: Array, name: str) -> Array:
            return normalise(x) * w[f"{name}.weight"] + w[f"{name}.bias"]

        def mlp(x: Array) -> Array:
            h = w.linear("linear1", x)
            return w.linear("linear2", np.maximum(h, 0) if fault == "activation" else erf_gelu(h))

        def attention(x: Array) -> Array:
            return attend("causal missing", x)[0]

        if norm_first != (fault == "norm-placement"):
            x = (0 if fault == "residual" else x) + attention(norm(x, "norm1"))
            return x + mlp(norm(x, "norm2"))
        x = norm((0 if fault == "residual" else x) + attention(x), "norm1")
        return norm(x + mlp(x), "norm2")

    case = Port(
        layer, (draw(B, L, D),), lambda f, x, _: port(f, x), {"src_key_padding_mask": ~PADDING}
    )
    for fault in ("norm-placement", "activation", "residual"):
        check(run(case, fault), fault)
    check(run(case, ""), None)


# Recurrent layers


def recurrent_port(model: nn.Module, lstm: bool) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Any:
        if fault == "token-order":
            x = x[:, ::-1]
        h = c = np.zeros((B, 5))
        outputs = []
        for t in range(x.shape[1]):
            a = x[:, t] @ w["weight_ih_l0"].T + w["bias_ih_l0"]
            b = h @ w["weight_hh_l0"].T + (0 if fault == "bias-missing" else w["bias_hh_l0"])
            if lstm:
                i, f, g, o = np.split(a + b, 4, -1)
                if fault == "gate-order":
                    g, o = o, g
                if fault == "gate-order of TensorFlow":
                    f, g = g, f
                if fault == "activation":
                    g = sigmoid(g)
                g = g if fault == "activation" else np.tanh(g)
                c = sigmoid(f) * c + sigmoid(i) * g
                h = sigmoid(o) * (c if fault == "activation-missing" else np.tanh(c))
            else:
                (r, z, n), (r_h, z_h, n_h) = np.split(a, 3, -1), np.split(b, 3, -1)
                if fault == "gate-order":
                    r, z, r_h, z_h = z, r, z_h, r_h
                r, z = sigmoid(r + r_h), sigmoid(z + z_h)
                if fault == "reset-placement":
                    W, b_n = w["weight_hh_l0"][10:], w["bias_hh_l0"][10:]
                    n = np.tanh(n + (r * h) @ W.T + b_n)
                else:
                    n = np.tanh(n + r * n_h)
                h = z * n + (1 - z) * h if fault == "gate-swap" else (1 - z) * n + z * h
            outputs.append(h)
        y = np.stack(outputs, 1)
        return (y, (h[None], c[None])) if lstm else (y, h[None])

    return port


@pytest.mark.parametrize(
    ("lstm", "fault", "word"),
    [
        (True, "", None),
        (True, "gate-order", "gate-order"),
        (True, "gate-order of TensorFlow", "gate-order"),
        (True, "bias-missing", "bias-missing"),
        (True, "activation", "activation"),
        (True, "activation-missing", "activation-missing"),
        (False, "", None),
        (False, "gate-order", "gate-order"),
        (False, "gate-swap", "gate-swap"),
        (False, "reset-placement", "reset-placement"),
    ],
)
def test_recurrent(lstm: bool, fault: str, word: str | None) -> None:
    model = perturbed((nn.LSTM if lstm else nn.GRU)(3, 5, batch_first=True))
    check(run(Port(model, (draw(B, 4, 3),), recurrent_port(model, lstm)), fault), word)


class Packed(nn.Module):
    """A bidirectional LSTM over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        _, (h, _) = self.lstm(packed)
        return torch.cat([h[0], h[1]], -1)


@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("padding", "padding"), ("sides", "split-order")]
)
def test_packed_sequences(fault: str, word: str | None) -> None:
    model = perturbed(Packed())
    w = Weights(model)

    def side(x: Array, suffix: str) -> Array:
        h = c = np.zeros(5)
        for row in x:
            a = row @ w[f"lstm.weight_ih_l0{suffix}"].T + w[f"lstm.bias_ih_l0{suffix}"]
            a = a + h @ w[f"lstm.weight_hh_l0{suffix}"].T + w[f"lstm.bias_hh_l0{suffix}"]
            i, f, g, o = np.split(a, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        return h

    def port(fault: str, x: Array, lengths: Array) -> Array:
        rows = []
        for row, n in zip(x, lengths, strict=True):
            own = row if fault == "padding" else row[:n]
            back = own if fault == "token-order" else own[::-1]
            ends = [side(own, ""), side(back, "_reverse")]
            rows.append(np.concatenate(ends[::-1] if fault == "sides" else ends))
        return np.stack(rows)

    check(run(Port(model, (draw(2, 4, 3), torch.tensor([4, 2])), port), fault), word)


# Convolutions, pooling, heads


class Images(nn.Module):
    """Convolution, pooling, flattening, a head."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(3 * (6 // stride), 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(torch.flatten(x, 1))


def images_port(model: Images, stride: int) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        kernel = w["conv.weight"]
        if fault == "transposed-kernel":
            kernel = kernel.swapaxes(0, 1)
        if fault == "kernel-layout":
            kernel = kernel.swapaxes(2, 3)
        if fault == "kernel flipped":
            kernel = kernel[:, :, ::-1, ::-1]
        if fault == "kernel reshaped":
            kernel = kernel.transpose(2, 3, 1, 0).reshape(kernel.shape)
        pad = ((0, 1), (0, 1)) if fault == "conv-padding" and stride == 2 else ((1, 1), (1, 1))
        if fault == "conv-padding" and stride == 1:
            pad = ((2, 0), (2, 0))
        y = convolve(x, kernel, pad, stride, "edge" if fault == "padding mode" else "constant")
        y = y + (0 if fault == "bias-missing" else w["conv.bias"][:, None, None])
        act = lambda v: v if fault == "activation-missing" else np.maximum(v, 0)  # noqa: E731

        def norm(v: Array) -> Array:
            mean, var = w["norm.running_mean"], w["norm.running_var"]
            if fault == "batch-statistics":
                mean, var = v.mean((0, 2, 3)), v.var((0, 2, 3))
            v = (v - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
            return v * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]

        y = norm(act(y)) if fault == "norm-placement" else act(norm(y))
        rows, columns = y.shape[2] // 2, y.shape[3] // 2
        y = y[:, :, : 2 * rows, : 2 * columns].reshape(2, 3, rows, 2, columns, 2)
        y = y.mean((3, 5)) if fault == "pooling" else y.max((3, 5))
        if fault == "flatten-order":
            y = y.transpose(0, 2, 3, 1)
        return w.linear("head", y.reshape(2, -1))

    return port


@pytest.mark.parametrize(
    ("stride", "fault", "word"),
    [
        *(
            (1, "", None),
            (1, "transposed-kernel", "transposed-kernel"),
            (1, "kernel-layout", "kernel-layout"),
        ),
        *((1, "kernel flipped", "kernel-layout"), (1, "kernel reshaped", "kernel-layout")),
        *((1, "conv-padding", "conv-padding"), (2, "conv-padding", "conv-padding")),
        *((1, "padding mode", "conv-padding"), (1, "bias-missing", "bias-missing")),
        *((1, "batch-statistics", "batch-statistics"), (1, "norm-placement", "norm-placement")),
        *((1, "pooling", "pooling"), (1, "flatten-order", "flatten-order")),
        (1, "activation-missing", "activation-missing"),
    ],
)
def test_images(stride: int, fault: str, word: str | None) -> None:
    model = perturbed(Images(stride))
    x = draw(2, 3, 4, 6) if stride == 1 else draw(2, 3, 4, 12)
    check(run(Port(model, (x,), images_port(model, stride)), fault), word)


class Patches(nn.Module):
    """The front of a vision transformer: patches, a class token, positions; the mean of all."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, D, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.zeros(1, 7, D))
        self.head = nn.Linear(D, 4)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.size(0), -1, -1), x], 1) + self.positions
        return self.head(x[:, 0] * x[:, 1] if self.pool == "cls" else torch.tanh(x).mean(1))


def patches_port(model: Patches) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        y = x.reshape(2, 3, 2, 2, 3, 2).transpose(0, 2, 4, 1, 3, 5)
        if fault == "token-order":
            y = y.transpose(0, 2, 1, 3, 4, 5)
        kernel = w["patch.weight"]
        y = np.einsum("bhwcij,dcij->bhwd", y, kernel).reshape(2, 6, D) + w["patch.bias"]
        cls = np.broadcast_to(w["cls"], (2, 1, D))
        y = np.concatenate([y, cls] if fault == "cls last" else [cls, y], 1)
        y = y + (0 if fault == "no positions" else w["positions"])
        y = np.tanh(y)
        y = {"pooling": y.max(1), "first": y[:, 0], "sum": y.sum(1)}.get(fault, y.mean(1))
        return w.linear("head", y)

    return port


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("token-order", "token-order"), ("cls last", "token-order")),
        *(("pooling", "pooling"), ("first", "pooling"), ("sum", "pooling")),
    ],
)
def test_patches(fault: str, word: str | None) -> None:
    model = perturbed(Patches("mean"))
    check(run(Port(model, (draw(2, 3, 4, 6),), patches_port(model)), fault), word)


class Sentences(nn.Module):
    """The mean over the tokens that are there, and a head tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, D)
        self.head = nn.Linear(D, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).unsqueeze(-1).to(torch.float64)
        x = torch.tanh(self.embed(ids))
        return self.head((x * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("", None),
        ("padding", "padding"),
        ("pooling", "pooling"),
        ("untied-head", "untied-head"),
        ("bias", None),
    ],
)
def test_sentences(fault: str, word: str | None) -> None:
    model = perturbed(Sentences())
    w = Weights(model)
    ids = torch.tensor([[3, 5, 0, 0, 0], [1, 2, 9, 4, 0]])

    def port(fault: str, ids: Array) -> Array:
        mask = (ids != 0)[..., None]
        x = np.tanh(w["embed.weight"][ids])
        pooled = (x * mask).sum(1) / mask.sum(1)
        if fault == "padding":
            pooled = x.mean(1)
        if fault == "pooling":
            pooled = (x * mask).sum(1)
        head = w["embed.weight"] if fault == "untied-head" else w["head.weight"]
        return pooled @ head.T + (np.arange(11) ** 2 if fault == "bias" else 0)

    check(run(Port(model, (ids,), port), fault), word)


class Loss(nn.Module):
    """The loss of a language model: each position predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, D), nn.Linear(D, 11)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.embed(ids))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))


@pytest.mark.parametrize(("fault", "word"), [("", None), ("label-shift", "label-shift")])
def test_labels(fault: str, word: str | None) -> None:
    model = perturbed(Loss())
    w = Weights(model)

    def port(fault: str, ids: Array) -> Array:
        logits = w.linear("head", w["embed.weight"][ids])[:, :-1]
        labels = ids[:, :-1] if fault == "label-shift" else ids[:, 1:]
        log_p = np.log(softmax(logits))
        return -np.take_along_axis(log_p, labels[..., None], -1).mean()

    ids = torch.tensor([[3, 5, 0, 7, 8], [1, 2, 9, 4, 0]])
    check(run(Port(model, (ids,), port), fault), word)


class Experts(nn.Module):
    """Two of five experts, weighted by the router; Mixtral normalises the weights of the chosen."""

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.router = nn.Linear(D, 5, bias=False)
        self.kernels = nn.Parameter(torch.ones(5, D, D))
        self.normalise = normalise

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(F.softmax(self.router(x), dim=-1), 2, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.einsum("bld,blkde->blke", x, self.kernels[chosen])
        return (y * weights.unsqueeze(-1)).sum(2)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("router-normalisation", "router-normalisation")]
)
def test_experts(normalised: bool, fault: str, word: str | None) -> None:
    model = perturbed(Experts(normalised))
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        p = softmax(x @ w["router.weight"].T)
        chosen = np.argsort(-p, -1)[..., :2]
        weights = np.take_along_axis(p, chosen, -1)
        if normalised != (fault == "router-normalisation"):
            weights = weights / weights.sum(-1, keepdims=True)
        y = np.einsum("bld,blkde->blke", x, w["kernels"][chosen])
        return (y * weights[..., None]).sum(2)

    check(run(Port(model, (draw(B, L, D),), port), fault), word)


class Modulated(nn.Module):
    """A scale and a shift from one projection, as in adaptive norms."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, 2 * D)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.project(F.silu(c)).chunk(2, -1)
        return x * (1 + scale) + shift


@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("split-order", "split-order"), ("pairs", "split-order")]
)
def test_modulation(fault: str, word: str | None) -> None:
    model = perturbed(Modulated())
    w = Weights(model)

    def port(fault: str, x: Array, c: Array) -> Array:
        y = w.linear("project", silu(c))
        shift, scale = np.split(y, 2, -1)
        if fault == "pairs":
            shift, scale = y[..., ::2], y[..., 1::2]
        if fault == "split-order":
            shift, scale = scale, shift
        return x * (1 + scale) + shift

    check(run(Port(model, (draw(B, D), draw(B, D, seed=2)), port), fault), word)


# The search


def test_the_whole_model_is_searched_where_the_module_shows_no_cause() -> None:
    """The port's value at the module is no help: its final output tells."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(D, H, batch_first=True)
            self.head = nn.Linear(D, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.attention(x, x, x, need_weights=False)[0]))

    model = perturbed(Model())
    x = draw(B, L, D)
    with torch.no_grad():
        theirs = model(x)
        attended = model.attention(x, x, x, need_weights=False)
    port = Weights(model).linear(
        "head", np.tanh(all_seeing(model.attention)("scale-missing", x.numpy()))
    )
    inputs = ((x, x, x), {"need_weights": False})
    strange = (draw(B, L, D, seed=5).numpy(), None)
    assert name_cause(model, "attention", inputs, attended, strange) is None
    context = Context(((x,), {}), theirs, port)
    found = name_cause(model, "attention", inputs, attended, strange, context=context)
    check(found, "scale-missing")
    assert "attention" in found.evidence
    elsewhere = name_cause(
        model, "head", ((draw(B, L, D),), {}), theirs, strange[0][..., :3], context=context
    )
    assert elsewhere is None or "attention" not in elsewhere.evidence


def all_seeing(model: nn.MultiheadAttention) -> Any:
    """Attention over everything, without masks."""
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        q, k, v = (
            a.reshape(B, L, H, K).transpose(0, 2, 1, 3)
            for a in np.split(x @ w["in_proj_weight"].T + w["in_proj_bias"], 3, -1)
        )
        scale = 1.0 if fault == "scale-missing" else K**-0.5
        y = softmax(q @ k.transpose(0, 1, 3, 2) * scale) @ v
        return (
            y.transpose(0, 2, 1, 3).reshape(B, L, D) @ w["out_proj.weight"].T + w["out_proj.bias"]
        )

    return port


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "norm": lambda: (HandLayerNorm(D), (draw(B, L, D),)),
    "channels": lambda: (Channels("group"), (draw(B, D, 3, 5),)),
    "fused attention": lambda: (HandAttention(True, "add"), (draw(B, L, D), None, PADDING)),
    "grouped queries": lambda: (HandAttention(False, "sdpa", 6, 3), (draw(B, L, D),)),
    "position bias": lambda: (Biased(False), (draw(B, L, D),)),
    "rotary": lambda: (RotaryAttention("complex"), (draw(B, 7, D),)),
    "embeddings": lambda: (Embedded(True), (torch.tensor([[3, 5, 0, 7, 0]]),)),
    "pre-norm": lambda: (Block("pre", "swish"), (draw(B, L, D),)),
    "post-norm": lambda: (Block("post", "leaky"), (draw(B, L, D),)),
    "encoder": lambda: (nn.TransformerEncoderLayer(D, H, 7), (draw(L, B, D),)),
    "packed": lambda: (Packed(), (draw(2, 4, 3), torch.tensor([4, 2]))),
    "GRU": lambda: (nn.GRU(3, 5), (draw(4, B, 3),)),
    "images": lambda: (Images(2), (draw(2, 3, 4, 12),)),
    "patches": lambda: (Patches("cls"), (draw(2, 3, 4, 6),)),
    "sentences": lambda: (Sentences(), (torch.tensor([[3, 5, 0, 7, 0]]),)),
    "loss": lambda: (Loss(), (torch.tensor([[3, 5, 0, 7, 8]]),)),
    "experts": lambda: (Experts(True), (draw(B, L, D),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_fault_can_be_looked_for_in_every_model(name: str) -> None:
    """No search stumbles over calls that it does not know; the record gives the model's outputs."""
    module, args = MODELS[name]()
    model = perturbed(module)
    graph = record(model, (args, {}))
    with torch.no_grad():
        outputs = tensors_of(model(*args))
    again = graph.evaluate({call.index: call for call in graph.calls})
    for value, output in zip(again, outputs, strict=True):
        torch.testing.assert_close(value, output)
    for row in (*SPECIFIC, *GENERAL):
        assert isinstance(list(mutants(row.fault(graph))), list)


def test_the_model_stays_as_it_is() -> None:
    model = perturbed(nn.TransformerEncoderLayer(D, H, 7, batch_first=True))
    x = draw(B, L, D)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        y = model(x)
        assert name_cause(model, "", ((x,), {}), y, y.numpy()[:, ::-1] ** 3) is None
        assert torch.equal(model(x), y)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_evidence_has_both_errors_and_the_next_word() -> None:
    cause = run(norm_cases()["LayerNorm"], "epsilon")
    assert cause.residual < 1e-12 < cause.runner_up
    assert "1e-06" in cause.evidence
    assert "falls from" in cause.evidence
