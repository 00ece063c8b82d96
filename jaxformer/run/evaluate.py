"""The loss of a model on a split, and what it comes to in perplexity and in bits per byte."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jaxformer.config import MeshConfig
from jaxformer.data.batches import evaluation_batches
from jaxformer.run.load import Run
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.training.objectives import next_token
from jaxformer.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A mean loss and the number of tokens it is the mean over."""

    loss: float
    """Nats a token."""
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
    tokens: np.ndarray,
    *,
    batch_size: int,
    context_length: int,
    sharding: NamedSharding,
    max_tokens: int | None = None,
) -> Evaluation:
    """Score the tokens in windows of the context, each token but the first exactly once.

    `max_tokens` stops after the first batches that hold as many.
    """
    batches = evaluation_batches(tokens, batch_size, context_length)
    if max_tokens is not None:
        batches = itertools.islice(batches, math.ceil(max_tokens / (batch_size * context_length)))
    sums = [eval_step(params, jax.device_put(batch, sharding)) for batch in batches]
    # Summed in float64 on the host: the result depends on no device and no order.
    total = math.fsum(float(loss) for loss, _ in sums)
    count = sum(int(number) for _, number in sums)
    return Evaluation(total / count, count)


def evaluate_run(run: Run, tokens: np.ndarray) -> Evaluation:
    """Score all the tokens on one device, in batches as large as the run's."""
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    return evaluate(
        jax.jit(make_eval_step(run.graph, next_token)),
        run.params,
        tokens,
        batch_size=run.config.batch_size,
        context_length=run.config.model.context_length,
        sharding=batch_sharding(mesh),
    )
