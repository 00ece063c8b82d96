"""The meshes of eight devices that tests compare with one, and a run of twenty steps on a mesh."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.config import GPT_PRESETS, LanguageConfig, MeshConfig
from jaxformer.models.functional import flat_params
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from jaxformer.training.step import Metrics, TrainState
from tests.flags import AS_USERS_COMPILE

MIXED = "tensor 2 x fsdp 2 x data 2"
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "tensor 2 x data 4": MeshConfig(data=4, tensor=2),
    MIXED: MeshConfig(data=2, fsdp=2, tensor=2),
}

EVERY_MESH = pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
EACH_MESH = pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, id=name, marks=[] if name == MIXED else [pytest.mark.slow])
        for name, mesh in MESHES.items()
    ],
)
"""The one with all axes in every run of the tests, the others in the full counts."""


class Ran(NamedTuple):
    """What a run gave, whole on the host."""

    losses: np.ndarray
    grad_norms: np.ndarray
    state: dict[str, np.ndarray]
    """The last state's parameters and moments by their paths."""


def toy_run(dtype: str = "float32", num_layers: int = 1, **changes) -> LanguageConfig:
    """Twenty steps of AdamW on a small GPT, dropout on."""
    model = dataclasses.replace(
        GPT_PRESETS["toy"], num_layers=num_layers, dropout_rate=0.1, dtype=dtype
    )
    return LanguageConfig(model=model, **({"steps": 20, "batch_size": 16} | changes))


def toy_batches(steps: int, rows: int = 16) -> list[Batch]:
    """Random tokens; not all of them count."""
    tokens = np.random.default_rng(0).integers(0, 64, (steps, rows, 17), dtype=np.int32)
    mask = np.ones((rows, 16), bool)
    mask[3, 9:] = False
    return [Batch(step[:, :-1], step[:, 1:], mask) for step in tokens]


def run(config: LanguageConfig, mesh: MeshConfig, devices=None) -> Ran:
    """Every step of the config on a mesh, compiled once."""
    program = build(language_spec(config), make_mesh(mesh, devices))
    state, reports = program.fresh_state(), []
    batches = [jax.device_put(batch, program.rows) for batch in toy_batches(config.steps)]
    step = program.train_step.lower(state, batches[0]).compile(AS_USERS_COMPILE)
    for batch in batches:
        state, metrics = step(state, batch)
        reports.append(metrics)
    return gathered(state, reports)


def gathered(state: TrainState, reports: list[Metrics]) -> Ran:
    """State and reports on the host."""
    state = state._replace(loss_stats=())  # follows from the losses
    leaves = {path: np.asarray(leaf) for path, leaf in flat_params(state).items()}
    losses = np.array([float(report.loss) for report in reports])
    return Ran(losses, np.array([float(report.grad_norm) for report in reports]), leaves)
