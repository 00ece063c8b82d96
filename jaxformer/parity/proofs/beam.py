"""Proofs of beam search: every hypothesis and score of a batch against the twin's, one by one.

The twin has no batch, no padding, no cache and no compilation, so each of them is proven too;
`translate_uncached` separates the cache from the rest. Drawn weights are changed in two places:
biases are small and the row of the end token is large, which makes the end likely at some places of
a target and unlikely at others, so that hypotheses of one beam end at different lengths.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxformer.batch import SpecialTokens
from jaxformer.config import BeamConfig
from jaxformer.decoding import beam, reference
from jaxformer.models.functional import leaf_path
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.parity.engine.model_pair import twin_config
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.proofs.transformer import TRANSFORMER_PAIR, transformer_case
from jaxformer.porting.compare import Key, compare
from torchref.decoding import beam as torch_beam

GREEDY = BeamConfig(beam=1, length_penalty=0.0, extra_length=4)
BEAMS = (
    GREEDY,
    *(
        BeamConfig(beam=width, length_penalty=alpha, n_best=width, extra_length=4)
        for width in (2, 5)
        for alpha in (0.0, 0.6, 1.0)
    ),
)

THREE = BeamConfig(beam=3, length_penalty=1.0, n_best=3, extra_length=4)


class Model(NamedTuple):
    """An encoder-decoder and its twin with the same weights."""

    graphdef: Any
    params: PyTree[Array]
    twin: Any
    specials: SpecialTokens


def draw_model(case: Case) -> Model:
    """Both sides in the type of the case; the last three tokens are the special ones."""
    graphdef, drawn = TRANSFORMER_PAIR.draw(case)
    params = jax.tree_util.tree_map_with_path(_branching, drawn)
    return Model(graphdef, params, TRANSFORMER_PAIR.twin(case, params), case.specials)


def _branching(path: tuple, leaf: jax.Array) -> jax.Array:
    """The end's row times 4, biases divided by 4: powers of two, so nothing is rounded."""
    name = leaf_path(path)
    if name.endswith("bias"):
        return leaf / 4
    if name == "embed/embedding":
        return leaf.at[-1].mul(4)
    return leaf.at[:, -1].mul(4) if name == "output/kernel" else leaf


def draw_sources(case: Case) -> list[np.ndarray]:
    """Sentences of different lengths, one a single token and one as long as the context."""
    T = case.config.context_length
    lengths = (3, 1, T, *case.rng("lengths").integers(1, T + 1, 3))
    return [case.tokens(f"source {i}", length) for i, length in enumerate(lengths)]


def prove_beams(case: Case) -> Comparison:
    """Greedy and beams of several widths and length penalties."""
    return _compare(case, BEAMS)


def prove_beam(case: Case) -> Comparison:
    """One beam of three."""
    return _compare(case, [THREE])


def prove_beam_uncached(case: Case) -> Comparison:
    """The same without a cache."""
    return _compare(case, [THREE], reference.translate_uncached)


def _compare(
    case: Case, beams: Sequence[BeamConfig], translate: Any = beam.translate
) -> Comparison:
    ours: dict[Key, Any] = {}
    theirs: dict[Key, Any] = {}
    sources = draw_sources(case)
    with arithmetic(case.dtype), contextlib.nullcontext() if case.jit else jax.disable_jit():
        model = draw_model(case)
        for config in beams:
            found = translate(
                model.graphdef, model.params, case.model_config, sources, model.specials, config
            )
            name = f"beam {config.beam}, penalty {config.length_penalty}"
            expected = [by_twin(model, case, source, config) for source in sources]
            key = Key("beam", "tokens", f"{name}: hypotheses")
            ours[key], theirs[key] = _tokens(case, found), _tokens(case, expected)
            our_numbers, their_numbers = _numbers(found, expected)
            ours |= {Key("beam", "output", f"{name}: {n}"): v for n, v in our_numbers.items()}
            theirs |= {Key("beam", "output", f"{name}: {n}"): v for n, v in their_numbers.items()}
    rows = compare(ours, theirs, BOUNDS["model", case.dtype], case.dtype, "transformer")
    if BOUNDS["tokens", case.dtype] is None:
        # Rounding may decide a near tie either way, after which the hypotheses differ.
        rows = [r._replace(bound=None, ok=True) if r.quantity == "tokens" else r for r in rows]
    return Comparison.of(rows)


def by_twin(model: Model, case: Case, source: np.ndarray, config: BeamConfig) -> list[Any]:
    """The twin's hypotheses of one source."""
    padding, start, end = dataclasses.astuple(model.specials)
    settings = twin_config(case.model_config), source.tolist(), padding, start, end
    return torch_beam.translate(model.twin, *settings, twin_config(config))


def _tokens(case: Case, found: Sequence[Sequence[Any]]) -> np.ndarray:
    """All hypotheses as rows, the sentence's number first and -1 after the last token."""
    rows = [(i, hypothesis) for i, sentence in enumerate(found) for hypothesis in sentence]
    tokens = np.full((len(rows), 1 + case.config.context_length), -1)
    for row, (i, hypothesis) in zip(tokens, rows, strict=True):
        row[: 1 + len(hypothesis.tokens)] = [i, *hypothesis.tokens]
    return tokens


def _numbers(
    found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores and log p of every hypothesis that both sides found, in the order of `expected`."""
    ours, theirs = (
        {(i, *h.tokens): (h.score, h.log_prob) for i, row in enumerate(rows) for h in row}
        for rows in (found, expected)
    )
    shared = [hypothesis for hypothesis in theirs if hypothesis in ours]
    both = (np.array([side[h] for h in shared]).reshape(-1, 2) for side in (ours, theirs))
    our_side, their_side = ({"scores": v[:, 0], "log p": v[:, 1]} for v in both)
    return our_side, their_side


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of beam search, each with its case; all are compiled."""
    shared = transformer_case(dataclasses.replace(case, jit=True))
    separate = transformer_case(shared, share_embeddings=False, norm_placement="pre")
    return [(prove_beams, shared), (prove_beam, separate), (prove_beam_uncached, separate)]
