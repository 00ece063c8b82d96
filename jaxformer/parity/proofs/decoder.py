"""Proofs of the whole decoder: its logits, every module on the way, every gradient; its cache.

The model's input is tokens, which have no gradient. The gradient with respect to the embeddings
takes its place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxformer.config import Activation, RopeScaling
from jaxformer.models.decoder import Decoder
from jaxformer.parity.engine.cases import Case, both_masks, dropout_key, keep_for
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.parity.engine.model_pair import ModelPair, compare_pair
from jaxformer.parity.proofs.decoder_layers import SCALINGS, decoder_case
from jaxformer.parity.proofs.decoding import compare_cache, compare_texts
from torchref.models import decoder as torch_decoder

DECODER_PAIR = ModelPair(Decoder, torch_decoder.Decoder, "decoder")


def prove_decoder(case: Case) -> Comparison:
    """Logits, every module's output and gradients, every parameter's gradient; dropout off."""
    return compare_pair(case.with_dropout(0.0), DECODER_PAIR, _inputs, "model")


def prove_decoder_dropout(case: Case) -> Comparison:
    """The same with dropout on and the same masks on both sides: quantity `dropout`."""
    return compare_pair(case.dropping(), DECODER_PAIR, _inputs, "model", quantity="dropout")


def prove_decoder_cache(case: Case) -> Comparison:
    """Logits of a text read token by token and in a longer piece, against PyTorch's."""
    return compare_cache(case, DECODER_PAIR)


def prove_decoder_generate(case: Case) -> Comparison:
    """Texts longer than the context, greedy and sampled: cached and uncached against PyTorch's."""
    return compare_texts(case, DECODER_PAIR)


def _inputs(case: Case) -> tuple[Sequence[Any], Sequence[Any]]:
    tokens = case.tokens("tokens", case.batch, case.length)
    ours, theirs = both_masks(case, case.length, case.length)
    key = None if case.config.dropout_rate == 0.0 else dropout_key(case)
    keep = None if key is None else keep_for(case, key)
    return (case.to_jax(tokens), ours, key), (case.to_torch(tokens), theirs, keep)


MISTRAL = {"sliding_window": 3, "tie_embeddings": False}
QWEN2 = {"attention_bias": True, "mlp_bias": True, "attention_out_bias": True}
QWEN3 = {"qk_norm": True, "rope_base": 1000.0, "head_width": 8}
GEMMA2 = {
    "activation": "gelu_tanh",
    "norm_unit_offset": True,
    "post_norms": True,
    "attention_scale": 0.3,
    "attention_soft_cap": 2.0,
    "final_soft_cap": 1.5,
    "scale_embeddings": True,
    "sliding_window": 2,
    "num_kv_heads": 1,
}
LLAMA3 = {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_context_length=64)}


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of the whole model, each with the case it is run on; one of them compiled.

    Together they have every value of every option of the config; in bfloat16 without ReLU, of which
    chance decides whether a number near 0 is left or right of the kink.
    """
    kinked: Activation = "gelu" if case.dtype == "bfloat16" else "relu"
    plain = decoder_case(case)
    masked = dataclasses.replace(plain, masks=("padding", "segments"))
    padded = dataclasses.replace(plain, masks=("padding",))
    return [
        (prove_decoder, dataclasses.replace(plain, jit=True)),
        (prove_decoder, masked.with_options(**MISTRAL, activation=kinked)),
        (prove_decoder, plain.with_options(**QWEN2, activation="gelu")),
        (prove_decoder, plain.with_options(**QWEN3)),
        (prove_decoder, plain.with_options(**LLAMA3)),
        (prove_decoder, padded.with_options(**GEMMA2)),
        (prove_decoder_dropout, padded.with_options(**MISTRAL)),
        (prove_decoder_dropout, padded.with_options(**GEMMA2, attention_dropout=False)),
    ]


def decoding_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of its decoding, each with its case."""
    plain = decoder_case(case)
    options: list[dict[str, Any]] = [MISTRAL, GEMMA2, QWEN3 | {"rope_scaling": SCALINGS[2]}]
    return [
        *((prove_decoder_cache, plain.with_options(**each)) for each in options),
        *((prove_decoder_generate, plain.with_options(**each)) for each in options[:2]),
    ]
