"""Numbers and dates in words: unambiguous, balanced in length, held out from training."""

import datetime
import random
from collections import Counter
from typing import get_args

import pytest

from jaxformer.config import NumbersConfig
from jaxformer.config.data import LARGEST_NUMBER, Language
from jaxformer.data.numbers import (
    FIRST_DATE,
    LANGUAGES,
    LAST_DATE,
    draw_items,
    in_words,
    number_pairs,
)
from jaxformer.errors import UserError

DAY = datetime.timedelta(days=1)
SMALL = {"num_pairs": 60, "num_val_pairs": 20}


def dates(*spans):
    """All dates from the first to the last of each span."""
    return [
        first + i * DAY
        for first, last in spans
        for i in range((last - first).days + 1)
        if FIRST_DATE <= first + i * DAY <= LAST_DATE
    ]


def sample():
    """Numbers of all lengths, dates of all days, months and years."""
    drawn = random.Random(0)
    numbers = [*range(1100), *(10**k for k in range(3, 7)), LARGEST_NUMBER]
    numbers += [drawn.randrange(10**k, 10 ** (k + 1)) for k in range(3, 7) for _ in range(60)]
    year = dates((datetime.date(2000, 1, 1), datetime.date(2000, 12, 31)))
    years = [datetime.date(year, 5, 3) for year in range(1000, 2100)]
    return sorted(set(numbers)) + sorted({*year, *years})


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_have_the_same_words(language):
    items = sample()
    said = [in_words(item, language) for item in items]
    assert len(set(said)) == len(items)
    for text in said:
        assert text == " ".join(text.split())
        assert not any(character.isdigit() or character in "{}" for character in text)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_of_many_have_the_same_words(language):
    drawn = random.Random(1)
    numbers = {*range(20_000), *(drawn.randrange(LARGEST_NUMBER + 1) for _ in range(80_000))}
    said = {in_words(number, language) for number in numbers}
    every_date = {in_words(date, language) for date in dates((FIRST_DATE, LAST_DATE))}
    assert len(said) == len(numbers)
    assert len(every_date) == (LAST_DATE - FIRST_DATE).days + 1
    assert not said & every_date


def test_the_languages_are_those_of_the_config():
    assert tuple(LANGUAGES) == get_args(Language)


@pytest.mark.parametrize(
    ("language", "first", "third"),
    [
        ("en", "the first of May nineteen oh-five", "the third of May nineteen oh-five"),
        ("de", "der erste Mai neunzehnhundertfünf", "der dritte Mai neunzehnhundertfünf"),
        ("fr", "le premier mai mille neuf cent cinq", "le trois mai mille neuf cent cinq"),
        (
            "es",
            "el uno de mayo de mil novecientos cinco",
            "el tres de mayo de mil novecientos cinco",
        ),
        ("it", "primo maggio millenovecentocinque", "tre maggio millenovecentocinque"),
        ("fi", "ensimmäinen toukokuuta tuhatyhdeksänsataaviisi", None),
        ("pt", "primeiro de maio de mil novecentos e cinco", None),
    ],
)
def test_dates_are_read_out(language, first, third):
    assert in_words(datetime.date(1905, 5, 1), language) == first
    assert third in (None, in_words(datetime.date(1905, 5, 3), language))


def test_held_out_items_are_not_training_items():
    train, val = draw_items(999_999, 3000, 400)
    assert (len(train), len(val)) == (3000, 400)
    assert len({*train, *val}) == 3400
    for language in ("en", "de"):
        learned = {in_words(item, language) for item in train}
        assert not learned & {in_words(item, language) for item in val}


def test_lengths_are_balanced_and_numbers_below_100_are_training_items():
    train, val = draw_items(999_999, 6000, 800)
    numbers = [[item for item in side if isinstance(item, int)] for side in (train, val)]
    assert set(range(100)) <= set(numbers[0])
    digits = [Counter(len(str(number)) for number in side) for side in numbers]
    assert [digits[0][k] for k in range(1, 7)] == [10, 90, 725, 725, 725, 725]
    assert [digits[1][k] for k in range(1, 7)] == [0, 0, 90, 103, 103, 104]
    years = Counter(item.year // 100 for item in train if isinstance(item, datetime.date))
    assert set(years) == set(range(10, 21))
    assert max(years.values()) < 1.3 * min(years.values())
    assert 350 < sum(isinstance(item, int) for item in train[:1000]) < 650  # in random order


def test_dates_fill_up_where_numbers_are_few():
    train, val = draw_items(120, 300, 50)
    numbers = [[item for item in side if isinstance(item, int)] for side in (train, val)]
    assert [len(side) for side in numbers] == [119, 2]
    assert (len(train), len(val)) == (300, 50)


def test_the_items_never_change():
    train, val = draw_items(9999, 4, 2)
    assert [str(item) for item in train + val] == [
        "1746",
        "1913-04-07",
        "271",
        "1916-07-11",
        "2055-03-08",
        "7963",
    ]


def test_a_pair_is_one_item_in_two_languages():
    texts = number_pairs(NumbersConfig(target_language="fr", **SMALL))
    train, val = draw_items(NumbersConfig().max_number, 60, 20)
    for pairs, items in ((texts.train, train), (texts.val, val)):
        assert list(pairs) == [(in_words(item, "en"), in_words(item, "fr")) for item in items]
    assert texts.name == "numbers and dates from en to fr"


def test_more_pairs_than_dates_are_refused():
    with pytest.raises(UserError, match=r"data\.num-pairs 401767 .*data\.num-val-pairs 1 .*401767"):
        number_pairs(NumbersConfig(num_pairs=401_767, num_val_pairs=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_language": "am"}, r"data\.source-language am .*da, de"),
        ({"max_number": 10**7}, r"data\.max-number 10000000 "),
        ({"num_pairs": 0}, r"data\.num-pairs 0 "),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        NumbersConfig(**changes)
