"""Beam search over the targets of an encoder-decoder: one sentence, lists, no cache.

A hypothesis is a sequence of at most `max_length` tokens of which the last, and no other, is the
end token. At each step all continuations of the live rows by one token are ranked by log p: of the
best `beam`, those that end are finished; the best `beam` that do not end stay alive. The search
stops when `beam` hypotheses are finished and no live row can beat the worst of them.
"""

from typing import NamedTuple

import torch

from torchref.config import BeamConfig, TransformerConfig
from torchref.models.transformer import Transformer


class Hypothesis(NamedTuple):
    """A finished translation."""

    tokens: list[int]
    score: float
    log_prob: float


@torch.no_grad()
def translate(
    model: Transformer,
    config: TransformerConfig,
    source: list[int],
    padding: int,
    start: int,
    end: int,
    beam: BeamConfig,
) -> list[Hypothesis]:
    """The n-best translations of a source, best first."""
    max_length = min(len(source) + beam.extra_length, config.context_length)
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, max_length + 1):
        ranked = []
        for tokens, log_prob in live:
            log_probs = next_log_probs(model, source, [start, *tokens])
            allowed = {end} if length == max_length else set(range(len(log_probs)))
            for token in sorted(allowed - {padding, start}):
                ranked.append(([*tokens, token], log_prob + log_probs[token]))
        ranked.sort(key=lambda row: row[1], reverse=True)
        finished += [
            Hypothesis(tokens[:-1], normalised(log_prob, length, beam.length_penalty), log_prob)
            for tokens, log_prob in ranked[: beam.beam]
            if tokens[-1] == end
        ]
        finished = sorted(finished, key=lambda row: row.score, reverse=True)[: beam.beam]
        live = [row for row in ranked if row[0][-1] != end][: beam.beam]
        hopes = [normalised(log_prob, max_length, beam.length_penalty) for _, log_prob in live]
        if len(finished) == beam.beam and all(hope <= finished[-1].score for hope in hopes):
            break
    return finished[: beam.n_best]


def next_log_probs(model: Transformer, source: list[int], target: list[int]) -> list[float]:
    """Log-probabilities of the token after the target; the whole target is the input."""
    logits_V = model(torch.tensor([source]), torch.tensor([target]))[0, -1]
    return torch.log_softmax(logits_V, dim=-1).tolist()


def normalised(log_prob: float, length: int, alpha: float) -> float:
    """log p / ((5 + length) / 6)^alpha."""
    return log_prob / ((5 + length) / 6) ** alpha
