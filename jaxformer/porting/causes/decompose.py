"""What PyTorch computes in one call, as the calls that a port spells out.

Each function has the arguments of the one in PyTorch of the same name and returns the same values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v."""
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key = torch.repeat_interleave(key, repeats, dim=-3)
        value = torch.repeat_interleave(value, repeats, dim=-3)
    scores = torch.matmul(query, key.transpose(-2, -1))
    scores = scores * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        ones = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool)
        hidden = torch.logical_not(torch.tril(ones))
        scores = torch.masked_fill(scores, hidden, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.masked_fill(scores, torch.logical_not(attn_mask), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    if attn_mask is not None and bool(torch.isnan(weights).any()):
        weights = torch.nan_to_num(weights)  # PyTorch gives rows without keys zero
    return torch.matmul(weights, value)


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention over (L, B, D), as `torch.nn.MultiheadAttention` calls it."""
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    # batch first, as ports have it
    query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    B, L, D = query.shape
    K = D // num_heads
    if use_separate_proj_weight:
        weights: Sequence[Any] = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3, dim=0)
    biases: Sequence[Any] = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3, dim=0)
    q = F.linear(query, weights[0], biases[0])
    k = F.linear(key, weights[1], biases[1])
    v = F.linear(value, weights[2], biases[2])
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(B, 1, -1)], dim=1)
        v = torch.cat([v, bias_v.expand(B, 1, -1)], dim=1)
    if add_zero_attn:
        k = torch.cat([k, torch.zeros(B, 1, D, dtype=k.dtype)], dim=1)
        v = torch.cat([v, torch.zeros(B, 1, D, dtype=v.dtype)], dim=1)
    M = k.size(1)
    extra = M - key.size(1)
    if attn_mask is not None and extra:
        attn_mask = F.pad(attn_mask, (0, extra))
    if key_padding_mask is not None and extra:
        key_padding_mask = F.pad(key_padding_mask, (0, extra))
    q = q.view(B, L, num_heads, K).transpose(1, 2)
    k = k.view(B, M, num_heads, K).transpose(1, 2)
    v = v.view(B, M, num_heads, K).transpose(1, 2)
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(K)
    if attn_mask is not None:
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.view(B, num_heads, L, M)
        scores = _masked(scores, attn_mask)
    if key_padding_mask is not None:
        scores = _masked(scores, key_padding_mask.view(B, 1, 1, M))
    probabilities = torch.softmax(scores, dim=-1)
    merged = torch.matmul(probabilities, v).transpose(1, 2).reshape(B, L, D)
    output = F.linear(merged, out_proj_weight, out_proj_bias).transpose(0, 1)
    if not need_weights:
        return (output.squeeze(1) if unbatched else output), None
    if average_attn_weights:
        probabilities = probabilities.mean(dim=1)
    if unbatched:
        return output.squeeze(1), probabilities.squeeze(0)
    return output, probabilities


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.masked_fill(scores, mask, -math.inf)
    return scores + mask


def lstm_cell(
    x: Tensor, state: Sequence[Tensor], w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None
) -> tuple[Tensor, Tensor]:
    h, c = state
    i, f, g, o = (F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, h: Tensor, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> Tensor:
    r_x, z_x, n_x = F.linear(x, w_x, b_x).chunk(3, dim=-1)
    r_h, z_h, n_h = F.linear(h, w_h, b_h).chunk(3, dim=-1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


def _simple_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(x: Tensor, h: Tensor, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> Tensor:
        return activation(F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h))

    return cell


def _recurrent(cell: Callable[..., Any]) -> Callable[..., Any]:
    """The layers and directions of a recurrent network, step by step."""

    def run(first: Any, second: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(second, Tensor) and not second.is_floating_point():
            return _packed(cell, first, second, *rest, **named)
        return _layers(cell, first, second, *rest, **named)

    return run


def _layers(
    cell: Callable[..., Any],
    x: Tensor,
    state: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    lengths: Sequence[int] | None = None,
) -> Any:
    two_states = not isinstance(state, Tensor)
    states = tuple(state) if two_states else (state,)
    if batch_first:
        x = x.transpose(0, 1)
    directions = 2 if bidirectional else 1
    per = len(weights) // (num_layers * directions)
    finals: list[list[Tensor]] = [[] for _ in states]
    for layer in range(num_layers):
        sides = []
        for direction in range(directions):
            k = layer * directions + direction
            own = weights[k * per : k * per + (4 if has_biases else 2)]
            own_state = tuple(s[k] for s in states)
            steps = x.flip(0) if direction else x
            outputs = []
            for t in range(x.size(0)):
                old = own_state
                result = cell(steps[t], own_state if two_states else own_state[0], *own)
                own_state = tuple(result) if two_states else (result,)
                if lengths is not None:
                    at = x.size(0) - 1 - t if direction else t
                    alive = torch.tensor([at < n for n in lengths]).unsqueeze(-1)
                    own_state = tuple(
                        torch.where(alive, new, before)
                        for new, before in zip(own_state, old, strict=True)
                    )
                outputs.append(own_state[0])
            y = torch.stack(outputs)
            sides.append(y.flip(0) if direction else y)
            for kept, last in zip(finals, own_state, strict=True):
                kept.append(last)
        x = torch.cat(sides, dim=-1) if bidirectional else sides[0]
    output = x.transpose(0, 1) if batch_first else x
    return (output, *(torch.stack(kept) for kept in finals))


def _packed(
    cell: Callable[..., Any],
    data: Tensor,
    batch_sizes: Tensor,
    state: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> Any:
    """A packed batch: padded, run with the states of ended rows kept, packed again."""
    sizes = batch_sizes.tolist()
    lengths = [sum(n > row for n in sizes) for row in range(sizes[0])]
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    rows = torch.tensor(
        [
            [starts[t] + row if row < n else 0 for row in range(sizes[0])]
            for t, n in enumerate(sizes)
        ]
    )
    padded = data[rows]
    output, *finals = _layers(
        *(cell, padded, state, weights, has_biases, num_layers, dropout, train),
        *(bidirectional, False, lengths),
    )
    kept = torch.tensor([[row < n for row in range(sizes[0])] for n in sizes])
    return (output[kept], *finals)


DECOMPOSED: Mapping[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "multi_head_attention_forward": multi_head_attention_forward,
    "lstm_cell": lstm_cell,
    "gru_cell": gru_cell,
    "rnn_tanh_cell": _simple_cell(torch.tanh),
    "rnn_relu_cell": _simple_cell(torch.relu),
    "lstm": _recurrent(lstm_cell),
    "gru": _recurrent(gru_cell),
    "rnn_tanh": _recurrent(_simple_cell(torch.tanh)),
    "rnn_relu": _recurrent(_simple_cell(torch.relu)),
}
"""By the name that a TorchFunctionMode sees."""
