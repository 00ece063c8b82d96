"""Proofs of the whole encoder-decoder: its logits, every module on the way, and every gradient.

The model's inputs are tokens, which have no gradient. The gradients with respect to the embeddings
of source and target take their place, which are those of the modules that read them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import torch

from jaxformer.config import TransformerConfig
from jaxformer.models.functional import merge
from jaxformer.models.transformer import Transformer
from jaxformer.parity.engine.cases import Case, Mask, both_inputs, valid_tokens
from jaxformer.parity.engine.comparison import Comparison, Proof, compare_values
from jaxformer.parity.engine.model_pair import ModelPair, compare_pair
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import Key
from torchref.models import transformer as torch_transformer

TRANSFORMER_PAIR = ModelPair(Transformer, torch_transformer.Transformer, "transformer")


def transformer_case(case: Case, **options: Any) -> Case:
    """The case with an encoder-decoder of its config's sizes; options are fields of the config."""
    return case.sized(TransformerConfig, **options)


def prove_transformer(case: Case) -> Comparison:
    """Logits, every module's output and gradients, every parameter's gradient; dropout off."""
    return compare_pair(case.with_dropout(0.0), TRANSFORMER_PAIR, _inputs, "model")


def prove_transformer_dropout(case: Case) -> Comparison:
    """The same with dropout on and the same masks on both sides: quantity `dropout`."""
    return compare_pair(case.dropping(), TRANSFORMER_PAIR, _inputs, "model", quantity="dropout")


def prove_transformer_cache(case: Case) -> Comparison:
    """Logits of a target read in pieces of one and of more tokens; PyTorch reads it at once."""
    case = case.with_dropout(0.0)
    L = case.length
    (source, target, valid, _, _), twin_inputs = _inputs(case)
    cuts = sorted({0, 1, L // 2, L - 1, L})
    with arithmetic(case.dtype):
        graphdef, params = TRANSFORMER_PAIR.draw(case)
        model = merge(graphdef, params)
        caches = model.init_cache(model.encode(source, valid), L)
        logits = []
        for start, end in itertools.pairwise(cuts):
            positions = jnp.broadcast_to(jnp.arange(start, end), (case.batch, end - start))
            hidden, caches = model.hidden(
                target[:, start:end], None, None, valid, caches=caches, positions=positions
            )
            logits.append(model.logits(hidden))
        with torch.no_grad():
            expected = TRANSFORMER_PAIR.twin(case, params)(*twin_inputs[:3])
    ours, key = jnp.concatenate(logits, axis=1), Key("cache", "output", "logits")
    return compare_values({key: ours}, {key: expected}, case, "model", "transformer")


def _inputs(case: Case) -> tuple[Sequence[Any], Sequence[Any]]:
    lengths = {"source": case.memory, "target": case.length}
    tokens = [case.tokens(side, case.batch, length) for side, length in lengths.items()]
    valid = [valid_tokens(case, length, side) for side, length in lengths.items()]
    return both_inputs(case, [*tokens, *valid])


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of the whole model, each with the case it is run on; one of them compiled.

    Together they have every value of every option of the config; in bfloat16 without ReLU: whether
    a number near 0 is left or right of the kink is chance there, and decides which side's error is
    larger.
    """
    narrow = case.dtype == "bfloat16"
    option = functools.partial(transformer_case, activation="gelu" if narrow else "relu")
    shared = option(case)
    kinds: tuple[Mask, ...] = ("padding", "nothing", "source padding", "target padding", "holes")
    masked = [dataclasses.replace(shared, masks=(kind,)) for kind in kinds]
    padded = masked[0]
    pre = option(padded, norm_placement="pre")
    other = functools.partial(option, padded, norm_placement="pre", share_embeddings=False)
    found: list[tuple[Proof, Case]] = [
        (prove_transformer, dataclasses.replace(shared, jit=True)),
        *((prove_transformer, each) for each in masked),
        (prove_transformer, option(padded, share_embeddings=False, activation="gelu")),
        (prove_transformer, pre),
        (prove_transformer, other(use_bias=False, activation="gelu_tanh")),
        (prove_transformer_dropout, padded),
        (prove_transformer_dropout, other(attention_dropout=True)),
    ]
    if not narrow:  # decoding has no float64 truth
        found += [(prove_transformer_cache, each) for each in (shared, pre, *masked)]
    return found
