"""How causes are looked for in any model, and what the evidence says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jaxformer.porting.causes import Context, name_cause
from jaxformer.porting.causes.graph import tensors_of
from jaxformer.porting.causes.record import record
from jaxformer.porting.causes.sites import mutants
from jaxformer.porting.causes.table import GENERAL, SPECIFIC
from parity_tests.causes.models import (
    Biased,
    Block,
    Channels,
    Embedded,
    Experts,
    Images,
    Loss,
    Packed,
    Patches,
    RotaryAttention,
    Sentences,
)
from parity_tests.causes.ports import (
    PADDING,
    Array,
    B,
    D,
    H,
    HandAttention,
    HandLayerNorm,
    K,
    L,
    Weights,
    check,
    draw,
    norm_cases,
    perturbed,
    run,
    softmax,
)


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
