"""Causes in whole blocks."""

from typing import Any

import numpy as np
import pytest
from torch import nn

from parity_tests.causes.models import Block
from parity_tests.causes.ports import (
    PADDING,
    Array,
    B,
    D,
    H,
    L,
    Port,
    Weights,
    check,
    draw,
    erf_gelu,
    mha_port,
    normalise,
    perturbed,
    run,
    silu,
    tanh_gelu,
)


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
