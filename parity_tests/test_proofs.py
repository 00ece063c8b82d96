"""The proofs of whole models on the cases of `jaxformer parity`; in the full counts, every proof.

The long ones are left out: the tests of training and of resume run them on smaller models.
"""

import dataclasses
import itertools
import typing

import jax
import numpy as np
import pytest

from jaxformer.config import BertConfig, DecoderConfig, GPTConfig, TransformerConfig
from jaxformer.models.functional import merge
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.proofs import bert, decoder, decoder_layers, gpt, layers, transformer
from jaxformer.parity.proofs.named_layers import LAYERS
from jaxformer.parity.report import MODELS, proofs_of

LONG = ("prove_training", "prove_resume")
PROOFS = [
    pytest.param(
        proof,
        case,
        id=f"{model}-{dtype}-{proof.__name__.removeprefix('prove_')}-{place}",
    )
    for dtype in ("float64", "float32")
    for place, (model, (proof, case)) in enumerate(proofs_of(MODELS, dtype))
    if proof.__name__ not in LONG
]
WHOLE_MODELS = [
    pytest.param(proof, case, id=f"{proof.__name__.removeprefix('prove_')}-{place}")
    for module in (gpt, transformer, bert, decoder)
    for place, (proof, case) in enumerate(module.proofs(Case(TINY, jit=False)))
]
"""Operation by operation: most shapes repeat."""


@pytest.mark.parametrize(("proof", "case"), WHOLE_MODELS)
def test_a_whole_model_is_its_twin(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.slow
@pytest.mark.parametrize(("proof", "case"), PROOFS)
def test_the_reports_proof_holds(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


PROVEN_ELSEWHERE = {
    "dtype": "the report runs every proof in each type",
    "initializer": "a proof draws its parameters: test_initialisation.py",
    "init_std": "test_initialisation.py",
    "attention": "the twin has one: tests/layers/test_attention.py, all equal to plain",
    "remat": "the twin has none: prove_remat, and tests/layers/test_stacks.py",
    "scan_layers": "the twin has none: prove_scan, and tests/layers/test_stacks.py",
    "dropout_rate": "every proof of a whole model sets its own",
    "norm_epsilon": "each model has its own, and a planted bug takes another's",
    "num_kv_heads": "sizes: a case of the decoder has one, and the layers' proofs have others",
    **dict.fromkeys(
        (
            "vocab_size", "context_length", "width", "num_heads", "mlp_width", "num_layers",
            "num_segments",
        ),
        "sizes: test_gpt.py, test_transformer.py, test_bert.py and test_decoder.py draw them",
    ),
}  # fmt: skip
REFUSED = {("bert", "norm_placement"): {"pre"}}
"""Values that a model's config refuses."""


def values_of(kind: object) -> set[object] | None:
    """What there is to choose for a field of this type, if it can be counted."""
    if kind is bool:
        return {True, False}
    return set(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else None


@pytest.mark.parametrize(
    "module", [gpt, transformer, bert, decoder], ids=lambda module: module.__name__
)
def test_every_option_of_a_model_is_proven_in_a_whole_model(module):
    """A new field of a config fails here until a case of these proofs has it: each of its choices,
    or two of its numbers."""
    model = module.__name__.rpartition(".")[2]
    configs = [case.config for _, case in module.proofs(Case(TINY, jit=False))]
    for field in dataclasses.fields(configs[0]):
        if field.name in PROVEN_ELSEWHERE:
            continue
        proven = {getattr(config, field.name) for config in configs}
        choices = values_of(field.type)
        if choices is None:
            assert len(proven) > 1, f"{model}: {field.name}"
        else:
            assert proven == choices - REFUSED.get((model, field.name), set()), field.name


@pytest.mark.parametrize(
    ("module", "pair"),
    [
        (gpt, gpt.GPT_PAIR),
        (transformer, transformer.TRANSFORMER_PAIR),
        (bert, bert.BERT_PAIR),
        (decoder, decoder.DECODER_PAIR),
    ],
    ids=["gpt", "transformer", "bert", "decoder"],
)
def test_every_choice_changes_the_model(module, pair):
    """Proofs cannot see an option that both sides ignore."""
    _, case = module.proofs(Case(TINY, "float32", jit=False))[0]
    for field in dataclasses.fields(case.config):
        values = values_of(field.type) or set()
        values -= REFUSED.get((pair.name, field.name), set())
        if field.name in PROVEN_ELSEWHERE:
            continue
        outputs = []
        for value in values:
            chosen = case.with_options(**{field.name: value}).with_dropout(0.3)
            graphdef, params = pair.draw(chosen)
            inputs, _ = module._inputs(chosen)
            outputs.append((jax.tree.structure(params), merge(graphdef, params)(*inputs)))
        for (leaves, logits), (other_leaves, others) in itertools.combinations(outputs, 2):
            assert leaves != other_leaves or not np.array_equal(logits, others), field.name


def test_every_proof_of_a_layer_is_in_the_report_and_has_a_layer():
    modules = {**vars(layers), **vars(decoder_layers)}
    defined = {f for name, f in modules.items() if name.startswith("prove_")}
    subjects = (
        layers.proofs,
        layers.position_proofs,
        layers.transformer_proofs,
        decoder_layers.proofs,
    )
    cases = [Case(TINY, dtype, jit=False) for dtype in ("float64", "float32")]
    proven = [entry for subject in subjects for case in cases for entry in subject(case)]
    assert {proof for proof, _ in proven} == defined
    assert {proof for layer in LAYERS.values() for proof in layer.proofs} == defined


def test_what_is_proven_elsewhere_is_still_there():
    configs = (GPTConfig, TransformerConfig, BertConfig, DecoderConfig)
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    assert PROVEN_ELSEWHERE.keys() <= fields
