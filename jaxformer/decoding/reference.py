"""Decoding without a cache: the whole text through the model for each token.

Slow and short definitions, to which cached decoding is equal. Sampling, the window rule and the
ranking of hypotheses are the same functions; only the cache is missing.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxformer.batch import SpecialTokens
from jaxformer.config import BeamConfig, ModelConfig, SamplingConfig, TransformerConfig
from jaxformer.decoding.beam import (
    Hypothesis,
    advance,
    any_alive,
    extract_hypotheses,
    init_beams,
)
from jaxformer.decoding.generate import truncate_context, validate_request
from jaxformer.decoding.prompts import pad_prompts, pad_sources, validate_sources
from jaxformer.decoding.state import row_keys, sample_token, seen_tokens
from jaxformer.models.functional import merge


def generate_uncached(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: ModelConfig,
    prompts: Sequence[Int[np.ndarray, "_"]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[Int[np.ndarray, " B"]]:
    """`generate` without a cache: the whole window through the model for each token."""
    windows = validate_request(prompts, config, max_new_tokens, seed)
    sampling, keys_B = sampling or SamplingConfig(), row_keys(seed, len(windows))
    seen_BV = seen_tokens(windows, config.vocab_size)
    for step in range(max_new_tokens):
        tokens_BL, lengths_B = pad_prompts(windows, config.context_length)
        logits_BV = logits_after(graphdef, params, tokens_BL, lengths_B)
        tokens = np.asarray(sample_token(logits_BV, seen_BV, sampling, keys_B, step))
        yield tokens
        seen_BV[np.arange(len(tokens)), tokens] = True
        windows = [
            truncate_context([*window, token], config.context_length)
            for window, token in zip(windows, tokens.tolist(), strict=True)
        ]


@functools.partial(jax.jit, static_argnames="graphdef")
def logits_after(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    tokens_BL: Int[Array, "B L"],
    lengths_B: Int[Array, " B"],
) -> Float[Array, "B V"]:
    """Logits of the token after the first `lengths` tokens of each row."""
    return merge(graphdef, params)(tokens_BL)[jnp.arange(len(lengths_B)), lengths_B - 1]


def translate_uncached(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: TransformerConfig,
    sources: Sequence[Int[np.ndarray, "_"]],
    specials: SpecialTokens,
    beam: BeamConfig = BeamConfig(),  # noqa: B008  frozen
) -> list[list[Hypothesis]]:
    """`translate` without a cache: whole targets through the model at every step."""
    rows = validate_sources(sources, config, specials)
    source_BM, valid_BM, max_length_B, length = pad_sources(
        rows, config, specials, beam.extra_length
    )
    beams = init_beams([], beam.beam, length, specials, max_length_B, config.dtype)
    while any_alive(beams):
        logits_BWV = beam_logits_at(graphdef, params, source_BM, valid_BM, beams.tokens, beams.step)
        beams = advance(beams, logits_BWV, specials, max_length_B, beam.length_penalty)
    return extract_hypotheses(beams, len(rows), specials, beam)


@functools.partial(jax.jit, static_argnames="graphdef")
def beam_logits_at(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    source_BM: Int[Array, "B M"],
    valid_BM: Bool[Array, "B M"],
    tokens: Int[Array, "B W L+1"],
    step: Int[Array, ""],
) -> Float[Array, "B W V"]:
    """Logits of the token after index `step` of each row."""
    model = merge(graphdef, params)
    logits = jax.vmap(lambda target: model(source_BM, target, valid_BM), 1, 1)(tokens[:, :, :-1])
    return logits[:, :, step]
