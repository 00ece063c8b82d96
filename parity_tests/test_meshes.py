"""Twenty steps on each mesh of eight devices are the PyTorch twin's twenty on one."""

import dataclasses

from jaxformer.config import MeshConfig
from jaxformer.models.functional import flat_params
from jaxformer.parity.bounds import SMALL_MODEL_STATE
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.training_pair import begin, compare_steps
from jaxformer.parity.proofs.decoder_layers import decoder_case
from jaxformer.parity.proofs.training import (
    DECODER_TRAINING,
    GPT_TRAINING,
    TRANSFORMER_TRAINING_KL,
)
from jaxformer.parity.proofs.transformer import transformer_case
from tests.meshes import EACH_MESH

SMALL = dataclasses.replace(TINY, vocab_size=16, context_length=8, mlp_width=32, num_layers=1)
CASE = Case(SMALL, "float64", batch=8).dropping()
"""Sixteen rows, eight a slice; every axis divides."""
STEPS = 20


@EACH_MESH
def test_twenty_steps_of_a_gpt_on_a_mesh_are_the_twins(mesh):
    found = compare_steps(CASE, GPT_TRAINING, "mesh", STEPS, "state", mesh=mesh)
    assert found.ok, [row for row in found.rows if not row.ok]
    assert max(row.error for row in found.rows) <= SMALL_MODEL_STATE
    assert len(found.rows) == 3 * (4 + 16 - 1) + 2


@EACH_MESH
def test_twenty_steps_of_a_transformer_on_a_mesh_are_the_twins(mesh):
    case, pair = transformer_case(CASE), TRANSFORMER_TRAINING_KL
    found = compare_steps(case, pair, "mesh", STEPS, "state", mesh=mesh)
    assert found.ok, [row for row in found.rows if not row.ok]
    assert max(row.error for row in found.rows) <= SMALL_MODEL_STATE


@EACH_MESH
def test_twenty_steps_of_a_decoder_by_muon_on_a_mesh_are_the_twins(mesh):
    case = decoder_case(CASE, tie_embeddings=False)
    found = compare_steps(case, DECODER_TRAINING, "mesh", STEPS, "state", mesh=mesh)
    assert found.ok, [row for row in found.rows if not row.ok]


def test_the_state_is_divided_over_the_mesh():
    with arithmetic("float64"):
        _, state = begin(CASE, GPT_TRAINING, STEPS, 2, MeshConfig(data=2, fsdp=2, tensor=2))
    leaves = flat_params(state.params)
    for path in ("embed/embedding", "blocks/0/mlp/up/kernel"):
        assert leaves[path].addressable_shards[0].data.size * 4 == leaves[path].size
        assert len(leaves[path].addressable_shards) == 8
