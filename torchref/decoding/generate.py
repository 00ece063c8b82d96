"""Text from a GPT, token by token: no cache, no batch, the whole window for every token.

The window is the input of the model: the whole text while it fits into context_length tokens. If a
token is added to a full window, the window keeps only the last (context_length + 1) // 2 tokens,
including the new one, and grows again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from torchref.config import GPTConfig, SamplingConfig
from torchref.decoding.sampling import select_token
from torchref.models.gpt import GPT


def truncate_context(window: list[int], context_length: int) -> list[int]:
    """The window, or its newest half if it is longer than the context."""
    return window if len(window) <= context_length else window[-((context_length + 1) // 2) :]


@torch.no_grad()
def generate(
    model: GPT,
    config: GPTConfig,
    prompt: list[int],
    max_new_tokens: int,
    sampling: SamplingConfig,
    noise: Callable[[int], Tensor],
) -> list[int]:
    """The tokens that continue the prompt; `noise(step)` is Gumbel noise (V,), unused if greedy."""
    window, new_tokens = list(prompt), []
    seen_BV = torch.zeros(1, config.vocab_size, dtype=torch.bool)
    seen_BV[0, prompt] = True
    for step in range(max_new_tokens):
        logits_BV = model(torch.tensor([window]))[:, -1]
        token = int(select_token(logits_BV, seen_BV, sampling, noise(step)[None]))
        new_tokens.append(token)
        seen_BV[0, token] = True
        window = truncate_context([*window, token], config.context_length)
    return new_tokens
