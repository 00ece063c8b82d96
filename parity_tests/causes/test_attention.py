"""Causes in attention: masks, scales, projections, heads."""

import pytest
import torch
from torch import nn

from parity_tests.causes.ports import (
    PADDING,
    B,
    D,
    H,
    HandAttention,
    L,
    Port,
    attention_port,
    check,
    draw,
    mha_port,
    perturbed,
    run,
)

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
