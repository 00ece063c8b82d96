"""Sampling the next token from its logits: greedy, temperature, top-k, top-p, min-p, repetition.

Each filter maps logits (B, V) to logits, -inf where a token is excluded. Ties:

    top_k    keeps every token as likely as the k-th, so perhaps more than k
    top_p    excludes the lower token ids first
    min_p    keeps or excludes equal tokens together
    argmax   takes the lowest token id
"""

import torch
from torch import Tensor

from torchref.config import SamplingConfig


def repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens divided by the penalty if positive, multiplied by it if negative."""
    weakened = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, weakened, logits_BV)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """The k likeliest tokens (Fan et al. 2018, section 5.4)."""
    kept = torch.topk(logits_BV, min(k, logits_BV.shape[-1])).values
    return logits_BV.masked_fill(logits_BV < kept[:, -1:], -torch.inf)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """The fewest tokens, likeliest first, whose probabilities sum to p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = torch.sort(logits_BV, stable=True)
    out_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    out_BV[:, -1] = False
    return logits_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), -torch.inf)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Tokens at least p times as probable as the likeliest (Nguyen et al. 2024, section 3)."""
    probabilities = logits_BV.softmax(dim=-1)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits_BV.masked_fill(probabilities < least, -torch.inf)


def filter_logits(logits_BV: Tensor, seen_BV: Tensor, config: SamplingConfig) -> Tensor:
    """All filters of the config; at temperature 0 only the repetition penalty applies."""
    if config.repetition_penalty != 1.0:
        logits_BV = repetition_penalty(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / config.temperature
    if config.top_k is not None:
        logits_BV = top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = min_p(logits_BV, config.min_p)
    return logits_BV


def greedy(logits_BV: Tensor) -> Tensor:
    """The likeliest token."""
    return logits_BV.argmax(dim=-1)


def sample(logits_BV: Tensor, noise_BV: Tensor) -> Tensor:
    """A sample of softmax(logits), given standard Gumbel noise."""
    return (logits_BV + noise_BV).argmax(dim=-1)


def select_token(
    logits_BV: Tensor, seen_BV: Tensor, config: SamplingConfig, noise_BV: Tensor
) -> Tensor:
    """The next token by the config: greedy at temperature 0, else a sample."""
    filtered_BV = filter_logits(logits_BV, seen_BV, config)
    return greedy(filtered_BV) if config.temperature == 0 else sample(filtered_BV, noise_BV)
