"""Scores compare texts with texts, pair by pair: by BLEU's definition, in words of the language."""

import unicodedata

import pytest

from jaxformer.evaluation import bleu as module
from jaxformer.evaluation.bleu import bleu_tokenizer, score
from tests.scored import BLEU, EXACT_MATCH, REFERENCES, TRANSLATIONS, bleu


def without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def without_punctuation(text: str) -> str:
    return "".join(c for c in text if c.isalnum() or c == " ")


def test_scores_are_those_of_the_translations():
    translations = ["one two three four", "five six seven eight"]
    references = ["one two three four ", "nine ten eleven twelve"]
    assert score(translations[:1], references[:1]).bleu == pytest.approx(100)
    assert score(translations, references).exact_match == 0.5
    assert score(translations, references).bleu < 60
    assert score(translations, references).translations == tuple(translations)


def test_bleu_is_that_of_its_definition_of_the_text_as_it_is():
    scores = score(TRANSLATIONS, REFERENCES)
    assert scores.bleu == pytest.approx(BLEU, rel=1e-9)
    assert scores.exact_match == EXACT_MATCH
    assert scores.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")


@pytest.mark.parametrize("change", [str.lower, without_accents, without_punctuation, str.title])
def test_bleu_of_a_changed_text_is_another(change):
    """So that none of these changes could pass the test before."""
    changed = score([*map(change, TRANSLATIONS)], [*map(change, REFERENCES)])
    assert abs(changed.bleu - BLEU) > 1


@pytest.mark.parametrize("places", ["A B", "a b ", " a b", "á b", "a  b", "a b."])
def test_a_match_is_exact_but_for_white_space_at_the_ends(places):
    assert score([places], ["a b"]).exact_match == (places.strip() == "a b")


CHINESE = ("我们昨天在北京看了一部GPT的新电影。", "他说:今天下雨了!")
CHINESE_TRANSLATIONS = ("我们昨天在北京看了一部GPT的电影。", "他说:今天下雪了!")


def test_chinese_is_scored_by_characters_and_foreign_words():
    def words(text: str) -> list[str]:
        before, foreign, after = text.partition("GPT")
        return [*before, *filter(None, [foreign]), *after]

    pairs = [*zip(map(words, CHINESE), map(words, CHINESE_TRANSLATIONS), strict=True)]
    scores = score(CHINESE_TRANSLATIONS, CHINESE)
    assert "|tok:zh|" in scores.signature
    assert scores.bleu == pytest.approx(bleu(pairs), rel=1e-9)
    assert 50 < scores.bleu < 99
    assert score(CHINESE, CHINESE).bleu == pytest.approx(100)


def test_what_was_translated_does_not_choose_how_it_is_scored():
    assert "|tok:zh|" in score(["The weather is fine."], CHINESE[:1]).signature
    assert "|tok:13a|" in score(CHINESE[:1], ["The weather is fine."]).signature


JAPANESE = ("昨日、東京で新しい映画を見ました。", "カタカナのテスト")
THAI = ("วันนี้อากาศดีมาก", "เขาไปโรงเรียน")
KOREAN = ("오늘은 날씨가 아주 좋습니다.",)


@pytest.mark.parametrize("references", [JAPANESE, THAI])
def test_without_spaces_and_dictionary_characters_are_counted(references, monkeypatch):
    monkeypatch.setattr(module, "_is_installed", lambda *packages: False)
    translations = [references[0].replace(references[0][7], ""), references[1]]
    scores = score(translations, references)
    assert "|tok:char|" in scores.signature
    expected = bleu([*zip(references, translations, strict=True)])
    assert scores.bleu == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("references", "installed", "expected"),
    [
        (JAPANESE, True, "ja-mecab"),
        (JAPANESE, False, "char"),
        (["漢字" * 15 + "の" * 2], True, "ja-mecab"),
        (["漢字" * 40 + "の" * 2], True, "zh"),
        (["ｶﾀｶﾅ"], True, "ja-mecab"),
        (KOREAN, True, "ko-mecab"),
        (KOREAN, False, "13a"),
        (THAI, True, "char"),
        (["ພາສາລາວ"], True, "char"),
        (["မြန်မာဘာသာ"], True, "char"),
        (["ភាសាខ្មែរ"], True, "char"),
        (CHINESE, True, "zh"),
        (["abc 漢字"], True, "zh"),
        (["the word 漢字 of an English text"], True, "13a"),
        (REFERENCES, True, "13a"),
        (["Это по-русски.", "Ελληνικά", "हिन्दी में", "بالعربية"], True, "13a"),
        (["1 2 3 !?"], True, "13a"),
        ([""], True, "13a"),
        ([], True, "13a"),
    ],
)
def test_the_script_of_the_references_selects_the_tokenizer(
    references, installed, expected, monkeypatch
):
    monkeypatch.setattr(module, "_is_installed", lambda *packages: installed)
    assert bleu_tokenizer(references) == expected


def test_a_dictionary_counts_as_installed_if_all_its_packages_are():
    assert module._is_installed("sacrebleu", "re")
    assert not module._is_installed("sacrebleu", "no_such_package")
