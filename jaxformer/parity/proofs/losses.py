"""Proofs of the losses, functions of logits, targets and mask: sum, gradient, number of tokens.

Also of the same losses computed from hidden states in chunks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof, late
from jaxformer.parity.engine.model_pair import compare_functions
from jaxformer.training import chunks, loss
from torchref.training import loss as torch_loss

SMOOTHING = 0.1


class Loss(NamedTuple):
    """A loss, its twin, drawn targets, and what both take besides logits, targets and mask."""

    function: Callable[..., Any]
    twin: Callable[..., Any]
    targets: np.ndarray
    options: tuple[Any, ...] = ()


def _cross_entropy(case: Case) -> Loss:
    targets = case.tokens("targets", case.batch, case.length)
    return Loss(late(lambda: loss.cross_entropy), torch_loss.cross_entropy, targets)


def _smoothed_cross_entropy(case: Case) -> Loss:
    targets = case.tokens("targets", case.batch, case.length)
    ours, theirs = late(lambda: loss.smoothed_cross_entropy), torch_loss.smoothed_cross_entropy
    return Loss(ours, theirs, targets, (SMOOTHING,))


def _label_smoothing_kl(case: Case) -> Loss:
    """No target is the padding token."""
    padding = case.config.vocab_size - 1
    targets = case.rng("targets").integers(0, padding, (case.batch, case.length))
    ours, theirs = late(lambda: loss.label_smoothing_kl), torch_loss.label_smoothing_kl
    return Loss(ours, theirs, targets, (SMOOTHING, padding))


def _accuracy(case: Case) -> Loss:
    """About half of the targets are given the largest logit."""
    shape = case.batch, case.length
    largest = case.normal("logits", *shape, case.config.vocab_size).argmax(-1)
    given = case.rng("given").random(shape) < 0.5
    targets = np.where(given, largest, case.tokens("targets", *shape))
    return Loss(late(lambda: loss.accuracy), torch_loss.accuracy, targets)


def prove_cross_entropy(case: Case) -> Comparison:
    """The summed cross-entropy."""
    return _compare_whole(case, "loss", _cross_entropy(case))


def prove_smoothed_cross_entropy(case: Case) -> Comparison:
    """PyTorch's label smoothing."""
    return _compare_whole(case, "smoothed_cross_entropy", _smoothed_cross_entropy(case))


def prove_label_smoothing_kl(case: Case) -> Comparison:
    """The Annotated Transformer's label smoothing."""
    return _compare_whole(case, "label_smoothing_kl", _label_smoothing_kl(case))


def prove_accuracy(case: Case) -> Comparison:
    """The number of targets with the largest logit."""
    return _compare_whole(case, "accuracy", _accuracy(case))


def prove_chunked_cross_entropy(case: Case) -> Comparison:
    """The summed cross-entropy, its logits in chunks: gradients of states and of the head."""
    return _compare_chunked(case, "chunked_loss", _cross_entropy(case))


def prove_chunked_smoothing(case: Case) -> Comparison:
    """The same of PyTorch's label smoothing."""
    return _compare_chunked(case, "chunked_smoothing", _smoothed_cross_entropy(case))


def prove_chunked_kl(case: Case) -> Comparison:
    """The same of the Annotated Transformer's."""
    return _compare_chunked(case, "chunked_kl", _label_smoothing_kl(case))


def _compare_whole(case: Case, layer: str, both: Loss) -> Comparison:
    """Both functions of drawn logits."""
    logits = case.normal("logits", *both.targets.shape, case.config.vocab_size)

    def ours(*arrays: Any) -> Any:
        return both.function(*arrays, *both.options)

    def theirs(*arrays: Any) -> Any:
        return both.twin(*arrays, *both.options)

    return _compare_sums(case, layer, ours, theirs, (logits,), both.targets)


def _compare_chunked(case: Case, layer: str, both: Loss) -> Comparison:
    """Drawn hidden states times a drawn embedding, in chunks of two tokens; the twin in one."""
    (B, L), V, D = both.targets.shape, case.config.vocab_size, case.config.width
    drawn = case.normal("hidden", B, L, D), case.normal("embedding", V, D) / np.sqrt(D)

    def ours(hidden: Any, embedding: Any, *rest: Any) -> Any:
        arrays = lambda h: h @ embedding.T, hidden, *rest, *both.options
        with mock.patch.object(chunks, "LARGEST_CHUNK", 2 * B * V):
            return chunks.in_chunks(both.function, *arrays)

    def theirs(hidden: Any, embedding: Any, *rest: Any) -> Any:
        return both.twin(hidden @ embedding.T, *rest, *both.options)

    return _compare_sums(case, layer, ours, theirs, drawn, both.targets)


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
