"""Original models of the tests of causes, in PyTorch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity_tests.causes.ports import B, D, H, K


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


class Packed(nn.Module):
    """A bidirectional LSTM over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        _, (h, _) = self.lstm(packed)
        return torch.cat([h[0], h[1]], -1)


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


class Loss(nn.Module):
    """The loss of a language model: each position predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, D), nn.Linear(D, 11)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.embed(ids))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))


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
