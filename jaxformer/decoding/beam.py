"""Beam search over the targets of an encoder-decoder: batched, compiled, with key-value caches.

A hypothesis is a sequence of at most `max_length` tokens of which the last, and no other, is the
end token. After max_length - 1 other tokens only the end may follow, at the probability the model
gives it, so every hypothesis ends. Padding and start tokens are never part of one. With p the
product of the model's probabilities of its tokens, including the end,

    score = log p / ((5 + length) / 6)^alpha,    length counting the end token

(Wu et al. 2016, equation 14, without coverage). W rows are alive, at first only the empty one. Each
step ranks all their continuations by one token by log p: of the best W, those that end are
finished, and the W best scores ever finished are kept; the best W that do not end stay alive. Equal
continuations are ranked by row, then by token id, the lower first.

A sentence stops when W hypotheses are finished and no live row can beat the worst of them: even its
log p, which can only fall, divided by the largest penalty it may reach, that of max_length, is no
higher. At alpha = 0 these rows can then lead to nothing better; W = 1 is greedy decoding. Sentences
stop independently: the rows of a stopped one are dead, and neither finish nor continue.

One `lax.while_loop` serves a batch until its last row is dead. A step reads the last tokens of a
sentence's W rows as W queries, and adds their keys and values to one cache per sentence: slot
l W + w is that of row w at step l. No key or value is ever moved. The *ancestry* of a row, that is
the slots of its own tokens, is the mask of its query; survivors inherit it. Batch and source are
padded to powers of two, so few shapes are compiled; padding rows and slots are masked, and change a
result by rounding only.

W is the beam, C = 2W the candidates of a step: at most W of them end, so W others always remain.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxformer.batch import SpecialTokens
from jaxformer.config import BeamConfig, TransformerConfig
from jaxformer.decoding.prompts import pad_sources, validate_sources
from jaxformer.errors import UserError
from jaxformer.layers.cache import DecoderCache, KVCache
from jaxformer.layers.precision import reduction_dtype, upcast
from jaxformer.models.functional import merge


class Hypothesis(NamedTuple):
    """A finished translation."""

    tokens: Int[np.ndarray, " L"]
    """Its tokens without the end."""
    score: float
    """log p / ((5 + length) / 6)^alpha, by which hypotheses are ranked."""
    log_prob: float
    """log p in nats, including the end's probability."""


class Beams(NamedTuple):
    """The state of a search. Rows of tokens begin with the start; padding follows the last."""

    step: Int[Array, ""]
    """Number of tokens of each live row, without the start."""
    tokens: Int[Array, "B W L+1"]
    """Live rows."""
    log_probs: Float[Array, "B W"]
    """log p of the live rows; -inf for dead ones."""
    caches: list[KVCache]
    """Keys and values of the tokens of all rows, slot l W + w that of row w at step l."""
    ancestry: Bool[Array, "B W S"]
    """True at the slots of each live row's tokens, S = L W."""
    finished_tokens: Int[Array, "B W L+1"]
    """The best finished hypotheses, best first."""
    finished_log_probs: Float[Array, "B W"]
    """Their log p."""
    finished_scores: Float[Array, "B W"]
    """Their scores; -inf where there is no hypothesis yet."""


def translate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: TransformerConfig,
    sources: Sequence[Int[np.ndarray, "_"]],
    specials: SpecialTokens,
    beam: BeamConfig = BeamConfig(),  # noqa: B008  frozen
) -> list[list[Hypothesis]]:
    """The n-best translations of each source, best first; fewer where fewer exist.

    All sources are one batch. A translation has at most as many tokens as its source and
    `extra_length` more, the end counted, and no more than the context.

    Args:
        graphdef: of the Transformer, see jaxformer.models.functional.
        params: its parameters.
        config: its config.
        sources: token ids, one array per sentence, of 1 to context_length tokens.
        specials: the model's padding, start and end tokens.
        beam: width, length penalty, n-best, longest translation.

    Raises UserError, before anything is computed, for sources that the model cannot read: none at
    all, empty, too long, or with ids outside the vocabulary; and afterwards if the probabilities
    are not numbers, as for a model whose training diverged.
    """
    rows = validate_sources(sources, config, specials)
    source_BM, valid_BM, max_length_B, length = pad_sources(
        rows, config, specials, beam.extra_length
    )
    beams = search(
        graphdef, beam.beam, length, specials, params, source_BM, valid_BM, max_length_B,
        beam.length_penalty,
    )  # fmt: skip
    return extract_hypotheses(beams, len(rows), specials, beam)


def translate_all(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: TransformerConfig,
    sources: Sequence[Int[np.ndarray, "_"]],
    specials: SpecialTokens,
    beam: BeamConfig = BeamConfig(),  # noqa: B008  frozen
    batch_size: int = 64,
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """`translate` in batches of sources of similar length, shortest first.

    Yields the index of each source and its translations, batch by batch.
    """
    rows = validate_sources(sources, config, specials)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        found = translate(graphdef, params, config, [rows[i] for i in batch], specials, beam)
        yield from zip(batch, found, strict=True)


@functools.partial(jax.jit, static_argnames=("graphdef", "width", "length", "specials"))
def search(
    graphdef: nnx.GraphDef,
    width: int,
    length: int,
    specials: SpecialTokens,
    params: PyTree[Array],
    source_BM: Int[Array, "B M"],
    valid_BM: Bool[Array, "B M"],
    max_length_B: Int[Array, " B"],
    alpha: Float[Array, ""] | float,
) -> Beams:
    """Advance beams until every row is dead; no hypothesis is longer than `length`."""
    model = merge(graphdef, params)
    encoded = model.init_cache(model.encode(source_BM, valid_BM), length * width)
    memory = [cache.memory for cache in encoded]

    def grow(beams: Beams) -> Beams:
        logits_BWV, caches = beam_logits(model, beams, memory, valid_BM)
        return advance(beams._replace(caches=caches), logits_BWV, specials, max_length_B, alpha)

    caches = [cache.own for cache in encoded]
    beams = init_beams(caches, width, length, specials, max_length_B, model.config.dtype)
    return jax.lax.while_loop(any_alive, grow, beams)._replace(caches=[])


def any_alive(beams: Beams) -> Bool[Array, ""]:
    """Whether any row of any sentence is alive."""
    return jnp.any(beams.log_probs > -jnp.inf)


def init_beams(
    caches: list[KVCache],
    width: int,
    length: int,
    specials: SpecialTokens,
    max_length_B: Int[Array, " B"],
    dtype: str,
) -> Beams:
    """One live row, the empty one, for each sentence; none where max_length is 0."""
    B, W = len(max_length_B), width
    none_BW = jnp.full((B, W), -jnp.inf, reduction_dtype(dtype))
    tokens = jnp.full((B, W, length + 1), specials.padding, jnp.int32)
    tokens = tokens.at[:, :, 0].set(specials.start)
    return Beams(
        step=jnp.int32(0),
        tokens=tokens,
        log_probs=none_BW.at[:, 0].set(jnp.where(max_length_B > 0, 0.0, -jnp.inf)),
        caches=caches,
        ancestry=add_slots(jnp.zeros((B, W, length * W), bool), jnp.int32(0)),
        finished_tokens=tokens,
        finished_log_probs=none_BW,
        finished_scores=none_BW,
    )


def beam_logits(
    model: Any, beams: Beams, memory: list[KVCache], valid_BM: Bool[Array, "B M"]
) -> tuple[Float[Array, "B W V"], list[KVCache]]:
    """Logits of the token after each live row, and the caches with the rows' last tokens added."""
    last_BW = jax.lax.dynamic_index_in_dim(beams.tokens, beams.step, axis=2, keepdims=False)
    caches = [DecoderCache(*pair) for pair in zip(beams.caches, memory, strict=True)]
    hidden_BWD, caches = model.hidden(
        last_BW,
        memory_BMD=None,
        mask=beams.ancestry[:, None],
        source_valid_BM=valid_BM,
        caches=caches,
        positions=jnp.full((1, last_BW.shape[1]), beams.step),
        slots=row_slots(beams.step, last_BW.shape[1]),
    )
    return model.logits(hidden_BWD), [cache.own for cache in caches]


def row_slots(step: Int[Array, ""], width: int) -> Int[Array, "1 W"]:
    """The slot of each row's token at this step."""
    return step * width + jnp.arange(width)[None]


def add_slots(ancestry_BWS: Bool[Array, "B W S"], step: Int[Array, ""]) -> Bool[Array, "B W S"]:
    """The ancestry with each row's own slot of this step; there is none after the last step."""
    W = ancestry_BWS.shape[1]
    return ancestry_BWS.at[:, jnp.arange(W), row_slots(step, W)[0]].set(True)


def log_probabilities(logits: Float[Array, "B W V"]) -> Float[Array, "B W V"]:
    """log softmax, in float32 or wider."""
    return jax.nn.log_softmax(upcast(logits))


def allowed_tokens(
    length: Int[Array, ""], max_length_B: Int[Array, " B"], specials: SpecialTokens, vocab_size: int
) -> Bool[Array, "B 1 V"]:
    """True at tokens that may be a row's last at this length: at max_length only the end, before it
    all but padding and start."""
    tokens_V = jnp.arange(vocab_size)
    text_V = (tokens_V != specials.padding) & (tokens_V != specials.start)
    must_end_B = length >= max_length_B
    return jnp.where(must_end_B[:, None, None], tokens_V == specials.end, text_V)


def advance(
    beams: Beams,
    logits_BWV: Float[Array, "B W V"],
    specials: SpecialTokens,
    max_length_B: Int[Array, " B"],
    alpha: Float[Array, ""] | float,
) -> Beams:
    """Rank all continuations by one token: some finish, some stay alive."""
    B, W, V = logits_BWV.shape
    length = beams.step + 1
    may_B1V = allowed_tokens(length, max_length_B, specials, V)
    log_probs_BWV = jnp.where(may_B1V, log_probabilities(logits_BWV), -jnp.inf)
    total = beams.log_probs[:, :, None] + log_probs_BWV
    log_probs_BC, index_BC = jax.lax.top_k(total.reshape(B, W * V), 2 * W)
    rows_BC, last_BC = index_BC // V, index_BC % V
    tokens = gather_beams(beams.tokens, rows_BC).at[:, :, length].set(last_BC)
    ends_BC = last_BC == specials.end

    ending_BC = finished_candidates(log_probs_BC, ends_BC)
    scores = [beams.finished_scores, normalised(ending_BC, length, alpha)]
    finished_scores, best_BW = jax.lax.top_k(jnp.concatenate(scores, axis=1), W)
    finished_tokens = jnp.concatenate([beams.finished_tokens, tokens], axis=1)
    finished_log_probs = jnp.concatenate([beams.finished_log_probs, ending_BC], axis=1)

    log_probs_BW, survivors_BW = jax.lax.top_k(alive_candidates(log_probs_BC, ends_BC), W)
    improves_B = can_improve(log_probs_BW, finished_scores, max_length_B, alpha)
    return Beams(
        step=length,
        tokens=gather_beams(tokens, survivors_BW),
        log_probs=jnp.where(improves_B[:, None], log_probs_BW, -jnp.inf),
        caches=beams.caches,
        ancestry=add_slots(inherit(beams.ancestry, gather_beams(rows_BC, survivors_BW)), length),
        finished_tokens=gather_beams(finished_tokens, best_BW),
        finished_log_probs=gather_beams(finished_log_probs, best_BW),
        finished_scores=finished_scores,
    )


def normalised(
    log_probs: Float[Array, "..."], length: Int[Array, "..."], alpha: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """log p / ((5 + length) / 6)^alpha."""
    penalty = ((5.0 + length.astype(log_probs.dtype)) / 6.0) ** alpha
    return log_probs / penalty


def finished_candidates(
    log_probs_BC: Float[Array, "B C"], ends_BC: Bool[Array, "B C"]
) -> Float[Array, "B C"]:
    """log p of the continuations that end among the best W; -inf for the others."""
    C = ends_BC.shape[1]
    return jnp.where(ends_BC & (jnp.arange(C) < C // 2), log_probs_BC, -jnp.inf)


def alive_candidates(
    log_probs_BC: Float[Array, "B C"], ends_BC: Bool[Array, "B C"]
) -> Float[Array, "B C"]:
    """log p of the continuations that do not end; -inf for the others."""
    return jnp.where(ends_BC, -jnp.inf, log_probs_BC)


def can_improve(
    log_probs_BW: Float[Array, "B W"],
    finished_scores_BW: Float[Array, "B W"],
    max_length_B: Int[Array, " B"],
    alpha: Float[Array, ""] | float,
) -> Bool[Array, " B"]:
    """Whether the best live row can beat the worst finished hypothesis, or fill an empty place."""
    return normalised(log_probs_BW[:, 0], max_length_B, alpha) > finished_scores_BW[:, -1]


def inherit(ancestry_BWS: Bool[Array, "B W S"], rows_BW: Int[Array, "B W"]) -> Bool[Array, "B W S"]:
    """The ancestry of the rows that the survivors continue."""
    return gather_beams(ancestry_BWS, rows_BW)


def gather_beams(values: Array, index: Int[Array, "B C"]) -> Array:
    """values[b, index[b, c]]."""
    return values[jnp.arange(len(index))[:, None], index]


def extract_hypotheses(
    beams: Beams, count: int, specials: SpecialTokens, beam: BeamConfig
) -> list[list[Hypothesis]]:
    """The n-best hypotheses of each of the first `count` sentences."""
    tokens, log_probs, scores = map(
        np.asarray, (beams.finished_tokens, beams.finished_log_probs, beams.finished_scores)
    )
    found = [
        [
            Hypothesis(row[1 : row.tolist().index(specials.end)], float(score), float(log_prob))
            for row, score, log_prob in zip(tokens[b], scores[b], log_probs[b], strict=True)
            if score > -np.inf
        ][: beam.n_best]
        for b in range(count)
    ]
    if not all(found):
        raise UserError(
            "the model's probabilities are not numbers: its training has diverged; "
            "use an earlier checkpoint"
        )
    return found
