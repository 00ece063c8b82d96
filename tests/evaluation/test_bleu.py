"""Scores compare texts with texts, pair by pair."""

import pytest

from jaxformer.evaluation.bleu import score


def test_scores_are_those_of_the_translations():
    translations = ["one two three four", "five six seven eight"]
    references = ["one two three four ", "nine ten eleven twelve"]
    assert score(translations[:1], references[:1]).bleu == pytest.approx(100)
    assert score(translations, references).exact_match == 0.5
    assert score(translations, references).bleu < 60
    assert score(translations, references).translations == tuple(translations)
