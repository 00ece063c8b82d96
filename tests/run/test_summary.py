"""The last words of a run: examples of what it translates."""

from jaxformer.data.pairs import Pair
from jaxformer.evaluation.bleu import score
from jaxformer.run.summary import examples

PAIRS = [Pair("one", "eins"), Pair("two", "zwei"), Pair("three", "drei"), Pair("four", "vier")]


def lines(translations, count):
    scores = score(translations, [pair.target for pair in PAIRS])
    return list(examples(PAIRS, scores, count))


def test_examples_are_the_first_ones_then_wrong_ones_of_the_rest():
    assert lines(("eins", "zwo", "drei ", "fier"), 2) == [
        "one → eins",
        "two → zwo (not zwei)",
        "four → fier (not vier)",
    ]


def test_no_example_is_shown_twice():
    shown = lines(("a", "b", "c", "d"), 3)
    assert len(shown) == len(set(shown)) == 4


def test_a_translation_in_other_letters_is_wrong():
    assert lines(("eins", "zwei", "Drei", "vier"), 2)[2:] == ["three → Drei (not drei)"]
