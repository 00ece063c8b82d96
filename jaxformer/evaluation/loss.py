"""The loss of a model on a split, as nats per token, perplexity and bits per byte; accuracy."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jaxformer.sharding.mesh import shard_batch


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A mean loss and the number of tokens it is the mean over."""

    loss: float
    """Nats per token."""
    num_tokens: int
    """Tokens scored."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, tokens_per_byte: float) -> float:
        """loss / ln 2 * tokens / bytes: comparable between tokenizers."""
        return self.loss / math.log(2) * tokens_per_byte


def evaluate(
    eval_step: Callable[[PyTree, Any], Any],
    params: PyTree,
    batches: Iterable[Any],
    sharding: NamedSharding,
) -> Evaluation:
    """The mean loss over every token that counts in the batches."""
    [(loss, count)] = means(lambda *args: [eval_step(*args)], params, batches, sharding)
    return Evaluation(loss, count)


def means(
    eval_step: Callable[[PyTree, Any], Sequence[Any]],
    params: PyTree,
    batches: Iterable[Any],
    sharding: NamedSharding,
) -> list[tuple[float, int]]:
    """The mean of each figure over all batches, and the number of tokens that it is the mean over.

    `eval_step` gives a batch's sum and number for each figure.
    """
    steps: list[Sequence[Any]] = []
    for batch in batches:
        steps.append(eval_step(params, shard_batch(batch, sharding)))
        jax.block_until_ready(steps[-2:-1])  # an interrupt waits for two batches, not for all
    # Summed in float64 on the host: the result depends on no device and no order.
    found = []
    for figure in zip(*steps, strict=True):
        count = sum(int(number) for _, number in figure)
        found.append((math.fsum(float(total) for total, _ in figure) / count, count))
    return found
