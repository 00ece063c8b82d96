"""The proof of exact resume: 10 steps, a checkpoint, 10 more = 20 steps, bit for bit."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import checkpoint
from jaxformer.batch import Batch
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, flat_params
from jaxformer.parity.cases import Case, draw_params, dropout_key
from jaxformer.parity.compare import Key, judge
from jaxformer.parity.divergence import Comparison
from jaxformer.parity.settings import arithmetic
from jaxformer.parity.training import OPTIMIZER, batch
from jaxformer.parity.twins import Proof
from jaxformer.training import optimizer, step
from jaxformer.training.objectives import next_token

STEPS = 20


def prove_resume(case: Case) -> Comparison:
    """Differing bytes in each leaf of the state, dropout on, through a checkpoint on disk."""
    rate = case.config.dropout_rate or 0.2
    case = dataclasses.replace(case, config=dataclasses.replace(case.config, dropout_rate=rate))
    with arithmetic(case.dtype), tempfile.TemporaryDirectory() as directory:
        graph, shapes = abstract_model(GPT, case.model_config)
        adamw = optimizer.adamw(OPTIMIZER, STEPS)
        train_step = jax.jit(step.make_train_step(graph, next_token, adamw, dropout_key(case)))

        def train(state: step.TrainState, start: int, end: int) -> step.TrainState:
            for i in range(start, end):
                state, _ = train_step(state, Batch(*map(jnp.asarray, batch(case, i))))
            return state

        start = step.init_state(draw_params(case, shapes), adamw)
        halfway = train(start, 0, STEPS // 2)
        with checkpoint.CheckpointWriter(Path(directory), keep=1) as writer:
            writer.save(STEPS // 2, halfway, metadata={})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), halfway)
        restored, _ = checkpoint.restore(Path(directory), abstract)
        ours = _bytes(train(restored, STEPS // 2, STEPS))
        theirs = _bytes(train(start, 0, STEPS))
    return Comparison.of(judge(ours, theirs, 0.0, case.dtype, "gpt"))


def _bytes(state: Any) -> dict[Key, np.ndarray]:
    return {
        Key("resume", "resume", path): np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)
        for path, leaf in flat_params(state).items()
    }


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The proof of resume; one layer has every kind of leaf."""
    config = dataclasses.replace(case.config, num_layers=1)
    return [(prove_resume, dataclasses.replace(case, config=config))]
