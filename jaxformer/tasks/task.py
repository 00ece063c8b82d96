"""What the training loop needs to know of a kind of run, so that it need not know the kinds.

`language_modeling.py` makes the task of a GPT on text, `translation.py` that of a Transformer on
pairs.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flax import nnx
from grain.sources import RandomAccessDataSource

from jaxformer.tasks.config_io import RunConfig
from jaxformer.training.objectives import Objective
from jaxformer.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """How a run learns: what follows from its settled configuration, without any data."""

    config: RunConfig
    """With nothing left open: its vocabulary has a size."""
    model: type[nnx.Module]
    objective: Objective
    """What a step lowers."""
    eval_objective: Objective
    """What a validation reports, in nats a token."""
    optimizer: Optimizer


class StepCost(NamedTuple):
    """What a step does with a batch, for the figures of its speed."""

    tokens: int
    """Targets that count in the loss."""
    flops: float
    """Forward and backward over the batch as it is shaped, padding included."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A method, and what it is applied to."""

    method: TrainSpec
    data: Any
    """The prepared data, with `tokenizer` and `fingerprint`."""
    description: tuple[str, ...]
    """Lines for the log: what is learned from, and how it is batched."""
    batches: RandomAccessDataSource[Any]
    """Whose item i is the whole batch of step i, in numpy arrays."""
    validation: Callable[[], Iterator[Any]]
    """The batches of a validation during the run, from the first."""
    work: Callable[[Any], StepCost]
    """Of a batch from `batches`."""
    num_shapes: int = 1
    """Shapes that batches have: the train step is compiled once for each that it meets."""
    row_multiple: int | None = None
    """What the numbers of rows are multiples of, if the batches depend on it."""
