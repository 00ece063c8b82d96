"""The proof of exact resume: 10 steps, a checkpoint and 10 more equal 20 steps, bit for bit."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import checkpoint
from jaxformer.models.functional import flat_params
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.training_pair import begin
from jaxformer.parity.proofs.training import TRAINING, one_layer
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.porting.compare import Key, compare
from jaxformer.training.step import TrainState

STEPS = 20


def prove_resume(case: Case) -> Comparison:
    """Differing bytes in each leaf of the state, dropout on, through a checkpoint on disk."""
    case, pair = case.dropping(), TRAINING[type(case.config)]
    with arithmetic(case.dtype), tempfile.TemporaryDirectory() as directory:
        train_step, first = begin(case, pair, STEPS, accumulation=1)

        def train(state: TrainState, start: int, end: int) -> TrainState:
            for i in range(start, end):
                state, _ = train_step(state, jax.tree.map(jnp.asarray, pair.batch(case, i)))
            return state

        halfway = train(first, 0, STEPS // 2)
        items = checkpoint.split(halfway)
        with checkpoint.CheckpointWriter(Path(directory), keep=1) as writer:
            writer.save(STEPS // 2, items, metadata={})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), items)
        restored, _ = checkpoint.restore(Path(directory), abstract)
        ours = _bytes(train(checkpoint.join(restored), STEPS // 2, STEPS))
        theirs = _bytes(train(first, 0, STEPS))
    return Comparison.of(compare(ours, theirs, 0.0, case.dtype, pair.models.name))


def _bytes(state: Any) -> dict[Key, np.ndarray]:
    return {
        Key("resume", "resume", path): np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
        for path, leaf in flat_params(state).items()
    }


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The proof of resume of a GPT, with the case it is run on."""
    return [(prove_resume, one_layer(case))]


def transformer_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The same of an encoder-decoder."""
    return [(prove_resume, one_layer(transformer_case(case)))]
