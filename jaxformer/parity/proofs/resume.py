"""The proof of exact resume: 10 steps, a checkpoint, 10 more = 20 steps, bit for bit."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import checkpoint
from jaxformer.models.functional import flat_params
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.steps import TrainingPair, begin
from jaxformer.parity.engine.twins import Proof
from jaxformer.parity.proofs.training import GPT_COURSE
from jaxformer.porting.compare import Key, judge
from jaxformer.porting.locate import Comparison
from jaxformer.training.step import TrainState

STEPS = 20


def prove_resume(case: Case) -> Comparison:
    """Differing bytes in each leaf of a GPT's state, dropout on, through a checkpoint on disk."""
    return compare_resumed(case, GPT_COURSE)


def compare_resumed(case: Case, course: TrainingPair) -> Comparison:
    """`prove_resume` of any model that is trained."""
    case = case.dropping()
    with arithmetic(case.dtype), tempfile.TemporaryDirectory() as directory:
        train_step, first = begin(case, course, STEPS, accumulation=1)

        def train(state: TrainState, start: int, end: int) -> TrainState:
            for i in range(start, end):
                state, _ = train_step(state, jax.tree.map(jnp.asarray, course.batch(case, i)))
            return state

        halfway = train(first, 0, STEPS // 2)
        items = checkpoint.split(halfway)
        with checkpoint.CheckpointWriter(Path(directory), keep=1) as writer:
            writer.save(STEPS // 2, items, metadata={})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items)
        restored, _ = checkpoint.restore(Path(directory), abstract)
        ours = _bytes(train(checkpoint.join(restored), STEPS // 2, STEPS))
        theirs = _bytes(train(first, 0, STEPS))
    return Comparison.of(judge(ours, theirs, 0.0, case.dtype, course.twins.name))


def _bytes(state: Any) -> dict[Key, np.ndarray]:
    return {
        Key("resume", "resume", path): np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
        for path, leaf in flat_params(state).items()
    }


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The proof of resume; one layer has every kind of leaf."""
    config = dataclasses.replace(case.config, num_layers=1)
    return [(prove_resume, dataclasses.replace(case, config=config))]
