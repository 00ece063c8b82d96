"""Beam search against the twin, against all sequences there are, and against transformers' own.

transformers' search is the same as this one at length_penalty 0 with early_stopping "never": a
hypothesis ends only among the best `num_beams` of a step, scores are log p, and the search stops
once no live row can beat the worst of `num_beams` finished ones. Its rows are made to end at
max_length as ours are, at the end's own log p: its option forced_eos_token_id counts it as certain.
Padding and start are suppressed after the softmax. It ranks in float32: scores agree to that.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList, MarianConfig, MarianMTModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from jaxformer.config import BeamConfig
from jaxformer.decoding import beam as search
from jaxformer.decoding import reference
from jaxformer.decoding.beam import translate
from jaxformer.decoding.reference import translate_uncached
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.proofs import beam as proofs
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.porting.compare import relative_error

T = TINY.context_length


@pytest.fixture(autouse=True)
def _float64():
    with arithmetic("float64"):
        yield


def drawn(seed, **options):
    """A model and its twin, weights drawn so that hypotheses end at different lengths."""
    case = transformer_case(Case(TINY, seed=seed), **options)
    return proofs.draw_model(case), case


def found_by(model, case, sources, config):
    return translate(
        model.graphdef, model.params, case.model_config, sources, model.specials, config
    )


def as_lists(rows):
    return [[hypothesis.tokens.tolist() for hypothesis in row] for row in rows]


# Each width and bucket is compiled, so they are few; weights, lengths and penalties vary.
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    width=st.sampled_from([1, 4]),
    alpha=st.sampled_from([0.0, 0.3, 0.6, 1.0, 2.0]),
    lengths=st.lists(st.integers(1, T), min_size=5, max_size=8),
)
def test_every_hypothesis_and_score_is_the_twins(seed, width, alpha, lengths):
    model, case = drawn(seed)
    beam = BeamConfig(beam=width, length_penalty=alpha, n_best=width, extra_length=4)
    sources = [case.tokens(f"source {i}", length) for i, length in enumerate(lengths)]
    found = found_by(model, case, sources, beam)
    expected = [proofs.by_twin(model, case, source, beam) for source in sources]
    assert as_lists(found) == [[h.tokens for h in row] for row in expected]
    for name in ("score", "log_prob"):
        ours, theirs = (
            [getattr(h, name) for row in rows for h in row] for rows in (found, expected)
        )
        assert relative_error(np.array(ours), np.array(theirs)) <= BOUNDS["model", "float64"]


def test_drawn_models_branch_and_end_at_different_lengths():
    beam = BeamConfig(beam=4, length_penalty=1.0, n_best=4, extra_length=4)
    rows = []
    for seed in range(12):
        model, case = drawn(seed)
        sources = [case.tokens(f"source {i}", length) for i, length in enumerate([1, 3, 5, T])]
        rows += found_by(model, case, sources, beam)
    lengths = [[len(h.tokens) for h in row] for row in rows]
    assert {length for row in lengths for length in row} == set(range(T))
    assert sum(len(set(row)) > 1 for row in lengths) > len(rows) / 2
    # The n-best of a sentence begin with different tokens: the beams have diverged.
    assert sum(len({tuple(h.tokens[:1]) for h in row}) > 1 for row in rows) > len(rows) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_all_candidates_finds_the_best_of_all_sequences(seed, alpha):
    """Three tokens of text, at most three before the end: 40 sequences."""
    tiny = dataclasses.replace(TINY, vocab_size=6)
    case = transformer_case(Case(tiny, seed=seed))
    model = proofs.draw_model(case)
    beam = BeamConfig(beam=40, length_penalty=alpha, n_best=40, extra_length=2)
    source = case.tokens("source", 2)
    (found,) = found_by(model, case, [source], beam)
    expected = sorted(all_sequences(model, source, 4, alpha), key=lambda row: row[1], reverse=True)
    assert len(expected) == 1 + 3 + 9 + 27
    assert [h.tokens.tolist() for h in found] == [tokens for tokens, _ in expected]
    ours, theirs = np.array([h.score for h in found]), np.array([score for _, score in expected])
    assert relative_error(ours, theirs) <= BOUNDS["model", "float64"]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_loses_nothing(seed, alpha, monkeypatch):
    """The result is the same if no sentence stops before its maximum length."""
    model, case = drawn(seed)
    beam = BeamConfig(beam=3, length_penalty=alpha, n_best=3, extra_length=4)
    sources = [case.tokens(f"source {i}", length) for i, length in enumerate([1, 3, T])]
    arguments = case.model_config, sources, model.specials, beam
    steps = []

    def counted(*args):
        steps[-1] += 1
        return advance(*args)

    found, advance = [], search.advance
    monkeypatch.setattr(reference, "advance", counted)
    for rule in (search.can_improve, lambda live, done, longest, alpha: live[:, 0] > -np.inf):
        monkeypatch.setattr(search, "can_improve", rule)
        steps.append(0)
        found.append(translate_uncached(model.graphdef, model.params, *arguments))
    assert as_lists(found[0]) == as_lists(found[1])
    assert [[h.score for h in row] for row in found[0]] == [
        [h.score for h in row] for row in found[1]
    ]
    assert steps[0] <= steps[1] == case.config.context_length


@torch.no_grad()
def all_sequences(model, source, max_length, alpha):
    """Every possible sequence and its score."""
    padding, start, end = dataclasses.astuple(model.specials)
    for length in range(1, max_length + 1):
        for tokens in itertools.product(range(padding), repeat=length - 1):
            inputs = torch.tensor([[start, *tokens]])
            logits = model.twin(torch.tensor(source)[None], inputs)
            log_probs = torch.log_softmax(logits[0], -1)
            log_p = sum(log_probs[i, token].item() for i, token in enumerate([*tokens, end]))
            yield list(tokens), log_p / ((5 + length) / 6) ** alpha


class Stub(MarianMTModel):
    """transformers' beam search on the logits of our twin."""

    def serve(self, twin, sources, valid):
        self.twin, self.sources, self.valid = twin, sources, valid
        return self

    def forward(self, decoder_input_ids=None, encoder_outputs=None, **_):
        rows = encoder_outputs.last_hidden_state[:, 0, 0].long()  # the sentence of each row
        logits = self.twin(self.sources[rows], decoder_input_ids, self.valid[rows])
        return Seq2SeqLMOutput(logits=logits)


class EndAt(LogitsProcessor):
    """Only the end token may be the last of `length`; log p are unchanged."""

    def __init__(self, end, length):
        self.end, self.length = end, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] + 1 < self.length:
            return scores
        others = torch.arange(scores.shape[1]) != self.end
        return scores.masked_fill(others, -torch.inf)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_hypotheses_are_those_of_transformers_beam_search(seed, width):
    config = dataclasses.replace(TINY, context_length=9)
    case = transformer_case(Case(config, seed=seed))
    model = proofs.draw_model(case)
    padding, start, end = dataclasses.astuple(model.specials)
    B, max_length = 4, 9
    lengths = case.rng("lengths").integers(1, max_length, B)
    sources = case.tokens("sources", B, max_length - 1)
    valid = np.arange(max_length - 1) < lengths[:, None]
    stub = Stub(
        MarianConfig(
            vocab_size=case.config.vocab_size,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            pad_token_id=padding,
            eos_token_id=end,
            decoder_start_token_id=start,
            forced_eos_token_id=None,
        )
    ).serve(model.twin, torch.tensor(sources), torch.tensor(valid))
    numbers = torch.arange(B, dtype=torch.float64)[:, None, None]
    theirs = stub.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=numbers),
        attention_mask=torch.ones(B, 1),
        num_beams=width,
        num_return_sequences=width,
        max_length=1 + max_length,
        length_penalty=0.0,
        early_stopping="never",
        suppress_tokens=[padding, start],
        logits_processor=LogitsProcessorList([EndAt(end, 1 + max_length)]),
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for i in range(B):
        source, extra_length = sources[i, : lengths[i]], max_length - int(lengths[i])
        beam = BeamConfig(beam=width, length_penalty=0.0, n_best=width, extra_length=extra_length)
        (found,) = found_by(model, case, [source], beam)
        rows = theirs.sequences[i * width : (i + 1) * width].tolist()
        assert [h.tokens.tolist() for h in found] == [row[1 : row.index(end)] for row in rows]
        if width > 1:
            scores = theirs.sequences_scores[i * width : (i + 1) * width]
            ours = np.array([h.score for h in found])
            assert relative_error(ours, scores) <= BOUNDS["layer", "float32"]
