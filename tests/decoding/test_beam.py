"""Beam search: what a translation depends on, what it does not depend on, what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.batch import SpecialTokens
from jaxformer.config import BeamConfig, TransformerConfig
from jaxformer.decoding import beam as module
from jaxformer.decoding.beam import translate, translate_all
from jaxformer.decoding.reference import translate_uncached
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.stacked import stack_layers
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bounds import BOUNDS
from jaxformer.porting.compare import relative_error

CONFIG = TransformerConfig(
    vocab_size=14, context_length=17, width=14, num_heads=2, mlp_width=31, num_layers=1
)
SPECIALS = SpecialTokens(padding=11, start=12, end=13)
BEAM = BeamConfig(beam=3, n_best=3, length_penalty=1.0, extra_length=6)
GREEDY = BeamConfig(beam=1, length_penalty=0.0, extra_length=6)


def branching(params):
    """Parameters with which hypotheses end at different lengths: the end is now likely, now not."""
    embedding = params["embed"]["embedding"].at[SPECIALS.end].mul(4)
    return {**params, "embed": {"embedding": embedding}}


@pytest.fixture(scope="module")
def model():
    """Graph, parameters and config."""
    config = dataclasses.replace(CONFIG, init_std=0.5)
    graphdef, _ = abstract_model(Transformer, config)
    return graphdef, branching(init_params(Transformer, config, jax.random.key(4))), config


def sentences(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 11, length) for length in lengths]


def assert_same(found, expected):
    """Equal hypotheses; scores to rounding, since the order of sums depends on the shape."""
    assert [[h.tokens.tolist() for h in row] for row in found] == [
        [h.tokens.tolist() for h in row] for row in expected
    ]
    for name in ("score", "log_prob"):
        ours, theirs = (
            np.array([getattr(h, name) for row in rows for h in row]) for rows in (found, expected)
        )
        assert relative_error(ours, theirs) <= BOUNDS["model", "float32"]


def test_beams_branch_and_end_at_different_lengths(model):
    found = translate(*model, sentences(*range(1, 13)), SPECIALS, BEAM)
    lengths = [len(h.tokens) for row in found for h in row]
    assert len(set(lengths)) > 6
    assert sum(len({len(h.tokens) for h in row}) > 1 for row in found) > 6


def test_a_sentence_does_not_depend_on_its_batch_padding_or_bucket(model):
    sources = sentences(3, 16, 1, 7, 9)
    alone = [translate(*model, [source], SPECIALS, BEAM)[0] for source in sources]
    assert_same(translate(*model, sources, SPECIALS, BEAM), alone)
    assert_same(translate(*model, sources[::-1], SPECIALS, BEAM), alone[::-1])
    assert_same(translate(*model, sources[2:4], SPECIALS, BEAM), alone[2:4])


def test_tokens_in_padding_do_not_matter(model, monkeypatch):
    sources = sentences(3, 6)
    expected = translate(*model, sources, SPECIALS, BEAM)
    pad_sources = module.pad_sources

    def filled(*args):
        source_BM, valid_BM, *rest = pad_sources(*args)
        return np.where(valid_BM, source_BM, 5), valid_BM, *rest

    monkeypatch.setattr(module, "pad_sources", filled)
    assert_same(translate(*model, sources, SPECIALS, BEAM), expected)


def test_the_ancestry_of_a_row_is_where_its_tokens_were_written(model):
    """And no key or value is moved from there."""
    graphdef, params, config = model
    B, W, L = 2, 3, 5
    source_BM, valid_BM = jnp.array(sentences(4, 4)), jnp.ones((B, 4), bool)
    whole, limit_B = merge(graphdef, params), jnp.full(B, L)
    encoded = whole.init_cache(whole.encode(source_BM, valid_BM), L * W)
    memory = [cache.memory for cache in encoded]
    own = [cache.own for cache in encoded]
    beams = module.init_beams(own, W, L, SPECIALS, limit_B, config.dtype)
    written = np.full((B, L * W), -1)
    for step in range(L - 1):
        part = slice(step * W, (step + 1) * W)
        written[:, part] = beams.tokens[:, :, step]
        before = beams.caches[0].k_BHMK
        logits_BWV, caches = module.beam_logits(whole, beams, memory, valid_BM)
        beams = module.advance(
            beams._replace(caches=caches), logits_BWV, SPECIALS, limit_B, BEAM.length_penalty
        )
        after = beams.caches[0].k_BHMK
        assert (after[:, :, part] != 0).any(axis=(1, 3)).all()
        changed = (np.array(before) != np.array(after)).any(axis=(0, 1, 3))
        assert set(np.flatnonzero(changed)) == set(range(L * W)[part])
        for b, w in np.argwhere(beams.log_probs > -jnp.inf):
            slots = np.flatnonzero(beams.ancestry[b, w])
            tokens = [*written[b, slots[:-1]], int(beams.tokens[b, w, step + 1])]
            assert tokens == beams.tokens[b, w, : step + 2].tolist()
            assert slots[-1] == (step + 1) * W + w


def test_batches_by_length_find_the_same(model):
    sources = sentences(9, 2, 12, 5, 3, 3, 7)
    found = list(translate_all(*model, sources, SPECIALS, BEAM, batch_size=3))
    lengths = [len(sources[index]) for index, _ in found]
    assert lengths == sorted(lengths)
    places = dict(found)
    together = translate(*model, sources, SPECIALS, BEAM)
    assert_same([places[index] for index in range(len(sources))], together)


def test_batches_are_translated_lazily(model, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "translate", lambda *args: calls.append(args) or [[]] * 2)
    found = translate_all(*model, sentences(1, 2, 3, 4), SPECIALS, BEAM, batch_size=2)
    assert calls == []
    next(found)
    next(found)
    assert len(calls) == 1
    next(found)
    assert len(calls) == 2


def test_n_best_are_sorted_distinct_and_the_first_of_all(model):
    sources = sentences(*range(1, 9))
    all_of_them = translate(*model, sources, SPECIALS, BEAM)
    for row in all_of_them:
        scores = [h.score for h in row]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.tokens.tolist()) for h in row}) == len(row) == 3
    two = translate(*model, sources, SPECIALS, dataclasses.replace(BEAM, n_best=2))
    assert_same(two, [row[:2] for row in all_of_them])


@pytest.fixture
def log_probs(model):
    """log p of the token after each token of a target, which the model reads whole."""
    graphdef, params, config = model
    T = config.context_length

    @jax.jit
    def whole(source_BM, valid_BM, target_BL):
        logits = merge(graphdef, params)(source_BM, target_BL, valid_BM)
        return jax.nn.log_softmax(logits[0])

    def log_probs(source, target):
        rows = [np.pad(tokens, (0, T - len(tokens)))[None] for tokens in (source, target)]
        return np.array(whole(rows[0], np.arange(T)[None] < len(source), rows[1]))[: len(target)]

    return log_probs


def test_scores_are_those_of_the_model_reading_the_whole_target(model, log_probs):
    sources, found, expected = sentences(2, 9, 5), [], []
    for source, row in zip(sources, translate(*model, sources, SPECIALS, BEAM), strict=True):
        for hypothesis in row:
            target = [*hypothesis.tokens, SPECIALS.end]
            steps = log_probs(source, [SPECIALS.start, *hypothesis.tokens])
            log_prob = float(sum(steps[range(len(target)), target]))
            found.append([hypothesis.log_prob, hypothesis.score])
            expected.append([log_prob, log_prob / ((5 + len(target)) / 6)])
    assert relative_error(np.array(found), np.array(expected)) <= BOUNDS["model", "float32"]


def test_no_hypothesis_is_too_long_or_has_a_special_token(model):
    sources = sentences(1, 4, 13, 17)
    beam = BeamConfig(beam=6, n_best=6, length_penalty=10.0, extra_length=2)
    found = translate(*model, sources, SPECIALS, beam)
    longest = [max(len(h.tokens) for h in row) for row in found]
    # The end counts; a large penalty prefers the longest.
    assert longest == [2, 5, 14, 16]
    assert all(h.tokens.max(initial=0) < SPECIALS.padding for row in found for h in row)


def test_fewer_are_returned_where_fewer_exist(model):
    beam = BeamConfig(beam=40, n_best=40, extra_length=1)
    (found,) = translate(*model, sentences(1), SPECIALS, beam)
    assert len(found) == 12  # the empty one, and one for each of the eleven tokens of text


def test_greedy_takes_the_likeliest_token_until_it_is_the_end(model, log_probs):
    sources = sentences(*range(1, 9), seed=1)
    found = translate(*model, sources, SPECIALS, GREEDY)
    for source, (hypothesis,) in zip(sources, found, strict=True):
        target = [SPECIALS.start]
        while target[-1] != SPECIALS.end and len(target) < len(source) + 6:
            steps = log_probs(source, target)[-1]
            steps[[SPECIALS.padding, SPECIALS.start]] = -np.inf
            target.append(int(steps.argmax()))
        assert hypothesis.tokens.tolist() == [t for t in target[1:] if t != SPECIALS.end]
        assert hypothesis.score == hypothesis.log_prob


def test_cached_is_uncached(model):
    sources = sentences(3, 16, 1)
    for beam in (BEAM, GREEDY):
        uncached = translate_uncached(*model, sources, SPECIALS, beam)
        assert_same(translate(*model, sources, SPECIALS, beam), uncached)


def test_a_model_of_scanned_layers_translates_alike():
    config = dataclasses.replace(CONFIG, init_std=0.5, num_layers=2)
    scanned = dataclasses.replace(config, scan_layers=True)
    params = branching(init_params(Transformer, config, jax.random.key(4)))
    found, expected = (
        translate(
            abstract_model(Transformer, form)[0], tree, form, sentences(3, 7), SPECIALS, GREEDY
        )
        for form, tree in ((scanned, stack_layers(params)), (config, params))
    )
    assert_same(found, expected)


def test_few_compilations_serve_all_lengths_and_penalties(model):
    module.search.clear_cache()
    for length in range(1, 17):
        for alpha in (0.0, 0.6):
            beam = BeamConfig(beam=2, length_penalty=alpha)
            translate(*model, sentences(length), SPECIALS, beam)
    for count in range(3, 9):
        translate(*model, sentences(*[5] * count), SPECIALS, beam)
    # Sources of at most 8 and 16, then batches of 4 and 8.
    assert module.search._cache_size() == 4


def test_the_search_ends_once_no_better_hypothesis_is_possible(model, monkeypatch):
    """A search that continues to the maximum length finds the same."""
    beam = dataclasses.replace(BEAM, length_penalty=0.0)
    sources = sentences(*range(1, 9))
    steps, advance = [], module.advance

    def counted(beams, *args):
        jax.debug.callback(lambda step: steps.append(int(step)), beams.step)
        return advance(beams, *args)

    def run():
        steps.clear()
        module.search.clear_cache()
        found = [translate(*model, [source], SPECIALS, beam)[0] for source in sources]
        jax.effects_barrier()
        module.search.clear_cache()
        return found, len(steps)

    monkeypatch.setattr(module, "advance", counted)
    stopped, early = run()
    monkeypatch.setattr(module, "can_improve", lambda live, *_: live[:, 0] > -jnp.inf)
    unstopped, late = run()
    assert_same(stopped, unstopped)
    assert early < late == sum(len(source) + 6 for source in sources)


def test_a_bfloat16_model_is_ranked_in_float32(model):
    _, params, config = model
    config = dataclasses.replace(config, dtype="bfloat16")
    graphdef, _ = abstract_model(Transformer, config)
    (found,) = translate(graphdef, params, config, sentences(5), SPECIALS, BEAM)
    assert found[0].score == pytest.approx(
        found[0].log_prob / ((5 + len(found[0].tokens) + 1) / 6), rel=1e-6
    )


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        ([], "there is no source: give at least one sentence"),
        ([np.array([1]), np.array([], int)], "the source is empty: give at least one token"),
    ],
)
@pytest.mark.parametrize("function", [translate, translate_uncached])
def test_bad_sources_are_refused_in_one_line(model, function, sources, line):
    with pytest.raises(UserError) as error:
        function(*model, sources, SPECIALS, BEAM)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    "specials", [SpecialTokens(11, 12, 14), SpecialTokens(11, 13, 13), SpecialTokens(-1, 1, 2)]
)
def test_impossible_special_tokens_are_refused(model, specials):
    with pytest.raises(UserError, match="are not of the model's vocabulary of 14"):
        translate(*model, sentences(3), specials, BEAM)


def test_a_model_whose_training_diverged_is_refused(model):
    graphdef, params, config = model
    broken = jax.tree.map(lambda x: jnp.full_like(x, math.nan), params)
    with pytest.raises(UserError, match="its training has diverged"):
        translate(graphdef, broken, config, sentences(3), SPECIALS, BEAM)
