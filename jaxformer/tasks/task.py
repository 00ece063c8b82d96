"""What the training loop and the planner know of a kind of run: a row, its spec and its task.

`language_modeling.py` holds the kinds of language models on text, `translation.py` those of a
Transformer on pairs, `kinds.py` the table of all.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flax import nnx
from grain.sources import RandomAccessDataSource
from jax.sharding import Mesh

from jaxformer.config import RunConfig
from jaxformer.training.objectives import Objective
from jaxformer.training.optimizer import Optimizer
from jaxformer.weights.convert import Table


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """How a run learns: what follows from its resolved configuration, without any data."""

    config: RunConfig
    """With nothing left open: its vocabulary has a size."""
    model: type[nnx.Module]
    objective: Objective
    """What a step lowers."""
    eval_objective: Objective
    """What a validation reports, in nats per token."""
    accuracy: Objective
    """What an evaluation reports beside it: targets whose logit is the largest."""
    optimizer: Optimizer
    own_objective: str | None = None
    """The name of the objective if it is the caller's; None if it is that of the kind."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A spec together with the data it learns from."""

    spec: TrainSpec
    data: Any
    """The prepared data, with `tokenizer` and `fingerprint`."""
    description: tuple[str, ...]
    """Lines for the log: what is learned from, and how it is batched."""
    batches: RandomAccessDataSource[Any]
    """Item i is the whole batch of step i, in numpy arrays with `targets` and `mask`."""
    validation: Callable[[], Iterator[Any]]
    """The batches of a validation during the run, from the first."""
    num_shapes: int = 1
    """Shapes that batches have: the train step is compiled once for each that it meets."""
    row_multiple: int | None = None
    """What the numbers of rows are multiples of, if the batches depend on it."""


class StepCost(NamedTuple):
    """What a step does with a batch, for the figures of its speed."""

    tokens: int
    """Targets that count in the loss."""
    flops: float
    """Forward and backward over the batch as it is shaped, padding included."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the runs of a kind do: one row of the table in kinds.py."""

    command: str
    """The command of `jaxformer` that writes text with such a run."""
    task: Callable[[Any, Mesh], Task]
    """From a config as it was asked for; prepares the data."""
    spec: Callable[[Any, int], TrainSpec]
    """From a resolved config and the number of tokens of its tokenizer."""
    num_specials: Callable[[Any], int]
    """From a config: tokens of the model that the tokenizer does not know."""
    flops: Callable[[Any, Any], float]
    """From a resolved config and a batch: floating-point operations of a step."""
    batch_shapes: Callable[[Any, Mesh], Sequence[Any]]
    """From a resolved config: every shape of a batch that it can meet, as ShapeDtypeStructs."""
    tables: Sequence[Table]
    """The layouts of files of weights that such a run can begin with."""
    extended: Callable[[Any], str]
    """From the config of a run with more steps than it had: what its schedule then does."""
    label_smoothing: Callable[[Any], float] = lambda config: 0.0
    """What the training loss has and the validation loss has not."""
