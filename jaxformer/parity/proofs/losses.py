"""Proofs of the losses, functions of logits, targets and mask: sum, gradient, number of tokens.

Also of the same losses computed from hidden states in chunks.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof, late
from jaxformer.parity.engine.model_pair import compare_functions
from jaxformer.training import chunks, loss
from torchref.training import loss as torch_loss

SMOOTHING = 0.1


def prove_cross_entropy(case: Case) -> Comparison:
    """The summed cross-entropy."""
    return _compare_losses(
        case,
        "loss",
        late(lambda: loss.cross_entropy),
        torch_loss.cross_entropy,
        case.tokens("targets", case.batch, case.length),
    )


def prove_smoothed_cross_entropy(case: Case) -> Comparison:
    """PyTorch's label smoothing."""
    return _compare_losses(
        case,
        "smoothed_cross_entropy",
        lambda x, t, m: loss.smoothed_cross_entropy(x, t, m, SMOOTHING),
        lambda x, t, m: torch_loss.smoothed_cross_entropy(x, t, m, SMOOTHING),
        case.tokens("targets", case.batch, case.length),
    )


def prove_label_smoothing_kl(case: Case) -> Comparison:
    """The Annotated Transformer's label smoothing; no target is the padding token."""
    padding = case.config.vocab_size - 1
    return _compare_losses(
        case,
        "label_smoothing_kl",
        lambda x, t, m: loss.label_smoothing_kl(x, t, m, SMOOTHING, padding),
        lambda x, t, m: torch_loss.label_smoothing_kl(x, t, m, SMOOTHING, padding),
        case.rng("targets").integers(0, padding, (case.batch, case.length)),
    )


def prove_accuracy(case: Case) -> Comparison:
    """The number of targets with the largest logit, of which about half are given it."""
    shape = case.batch, case.length
    largest = case.normal("logits", *shape, case.config.vocab_size).argmax(-1)
    given = case.rng("given").random(shape) < 0.5
    return _compare_losses(
        case,
        "accuracy",
        late(lambda: loss.accuracy),
        torch_loss.accuracy,
        np.where(given, largest, case.tokens("targets", *shape)),
    )


def prove_chunked_cross_entropy(case: Case) -> Comparison:
    """The summed cross-entropy, its logits in chunks: gradients of states and of the head."""
    return _compare_chunked(
        case,
        "chunked_loss",
        late(lambda: loss.cross_entropy),
        torch_loss.cross_entropy,
        case.tokens("targets", case.batch, case.length),
    )


def prove_chunked_smoothing(case: Case) -> Comparison:
    """The same of PyTorch's label smoothing."""
    return _compare_chunked(
        case,
        "chunked_smoothing",
        late(lambda: loss.smoothed_cross_entropy),
        torch_loss.smoothed_cross_entropy,
        case.tokens("targets", case.batch, case.length),
        SMOOTHING,
    )


def prove_chunked_kl(case: Case) -> Comparison:
    """The same of the Annotated Transformer's."""
    padding = case.config.vocab_size - 1
    return _compare_chunked(
        case,
        "chunked_kl",
        late(lambda: loss.label_smoothing_kl),
        torch_loss.label_smoothing_kl,
        case.rng("targets").integers(0, padding, (case.batch, case.length)),
        SMOOTHING,
        padding,
    )


def _compare_losses(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    targets: np.ndarray,
) -> Comparison:
    """Both functions on drawn logits and a drawn mask."""
    logits = case.normal("logits", *targets.shape, case.config.vocab_size)
    return _compare_sums(case, layer, function, twin, (logits,), targets)


def _compare_chunked(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    targets: np.ndarray,
    *options: Any,
) -> Comparison:
    """Drawn hidden states times a drawn embedding, in chunks of two tokens; the twin in one."""
    (B, L), V, D = targets.shape, case.config.vocab_size, case.config.width
    drawn = case.normal("hidden", B, L, D), case.normal("embedding", V, D) / np.sqrt(D)

    def ours(hidden: Any, embedding: Any, *rest: Any) -> Any:
        with mock.patch.object(chunks, "LARGEST_CHUNK", 2 * B * V):
            return chunks.in_chunks(function, lambda h: h @ embedding.T, hidden, *rest, *options)

    def theirs(hidden: Any, embedding: Any, *rest: Any) -> Any:
        return twin(hidden @ embedding.T, *rest, *options)

    return _compare_sums(case, layer, ours, theirs, drawn, targets)


def _compare_sums(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    drawn: tuple[np.ndarray, ...],
    targets: np.ndarray,
) -> Comparison:
    """Both functions of drawn arrays, targets and a drawn mask."""
    arrays = *drawn, targets, case.rng("mask").random(targets.shape) < 0.7

    def inputs(case: Case) -> tuple[list, list]:
        return [*map(case.to_jax, arrays)], [*map(case.to_torch, arrays)]

    def with_count(function: Callable[..., Any], floating: Any) -> Any:
        # Only floats are traced.
        def both(*args: Any) -> tuple[Any, Any]:
            total, count = function(*args)
            return total, floating(count)

        return both

    ours = with_count(function, lambda n: n.astype(float))
    return compare_functions(case, layer, ours, with_count(twin, lambda n: n.double()), inputs)


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The loss of GPT and the accuracy, with the case they are proven on."""
    return [
        (prove_cross_entropy, case),
        (prove_chunked_cross_entropy, case),
        (prove_accuracy, case),
    ]


def smoothing_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The losses of the Transformer of 2017."""
    return [
        (prove_smoothed_cross_entropy, case),
        (prove_label_smoothing_kl, case),
        (prove_chunked_smoothing, case),
        (prove_chunked_kl, case),
    ]
