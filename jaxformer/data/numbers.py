"""Numbers and dates in words, from one language into another: translation with a known answer.

num2words writes the numbers, days and years, babel the names of months. A number is written out in
both languages. A date is read out as below, its day as an ordinal or a cardinal number, its year in
the form that the language uses for years. Half of the pairs are numbers, half are dates:

    two hundred and seven                  zweihundertsieben
    the third of May nineteen oh-five      der dritte Mai neunzehnhundertfünf

Every number of digits occurs equally often, as far as enough numbers exist: if drawn uniformly,
nine in ten would have the most digits. Numbers below 100, whose words make up all the
others, are always training data. No pair occurs twice, and no held-out number or date is training
data in any language.
"""

import dataclasses
import datetime
import functools
from collections.abc import Mapping

from jaxformer.config import NumbersConfig
from jaxformer.data.clean import Cleaning
from jaxformer.data.pairs import Pair
from jaxformer.data.parallel_text import PairTexts
from jaxformer.data.rng import HELD_OUT, even_shares, philox, shuffled
from jaxformer.errors import UserError
from jaxformer.extras import require_extra

FIRST_DATE, LAST_DATE = datetime.date(1000, 1, 1), datetime.date(2099, 12, 31)
NUM_DATES = LAST_DATE.toordinal() - FIRST_DATE.toordinal() + 1


Item = int | datetime.date


@dataclasses.dataclass(frozen=True)
class DateWords:
    """How a language reads out a date."""

    pattern: str
    ordinal: bool = False
    """Whether the day is an ordinal number."""
    first: str | None = None
    """The word for the first day, where it is not a cardinal number like the others."""


LANGUAGES: Mapping[str, DateWords] = {
    "da": DateWords("den {day} {month} {year}", ordinal=True),
    "de": DateWords("der {day} {month} {year}", ordinal=True),
    "en": DateWords("the {day} of {month} {year}", ordinal=True),
    "es": DateWords("el {day} de {month} de {year}"),
    "fi": DateWords("{day} {month} {year}", ordinal=True),
    "fr": DateWords("le {day} {month} {year}", first="premier"),
    "id": DateWords("{day} {month} {year}"),
    "it": DateWords("{day} {month} {year}", first="primo"),
    "nl": DateWords("{day} {month} {year}"),
    "pt": DateWords("{day} de {month} de {year}", first="primeiro"),
    "ro": DateWords("{day} {month} {year}", first="întâi"),
}
"""The languages whose words were checked: no two numbers or dates have the same words. (In Turkish,
which num2words writes without spaces, some have.)"""


def number_pairs(data: NumbersConfig) -> PairTexts:
    """The pairs that `data` describes: a pure function of `data` and of the two libraries.

    Raises UserError if `data` asks for more pairs than exist, or without the extra `numbers`.
    """
    require_extra("numbers", "writing numbers and dates in words")
    if data.num_pairs + data.num_val_pairs > NUM_DATES:
        raise UserError(
            f"data.num-pairs {data.num_pairs} and data.num-val-pairs {data.num_val_pairs} are more "
            f"than the existing dates: choose at most {NUM_DATES} together"
        )
    train, val = draw_items(data.max_number, data.num_pairs, data.num_val_pairs)
    languages = data.source_language, data.target_language
    pairs = [
        tuple(Pair(*(in_words(item, language) for language in languages)) for item in side)
        for side in (train, val)
    ]
    return PairTexts(
        name=f"numbers and dates from {data.source_language} to {data.target_language}",
        train=pairs[0],
        val=pairs[1],
        cleaning=Cleaning(len(train)),
    )


def draw_items(max_number: int, num_train: int, num_val: int) -> tuple[list[Item], list[Item]]:
    """Training items and held-out items, numbers and dates in random order.

    Half of each are numbers, fewer where not enough numbers exist; the rest are dates.
    """
    ranges = [
        range(low, min(10 * max(low, 1), max_number + 1))
        for low in (0, *(10**digits for digits in range(1, len(str(max_number)))))
    ]
    may_be_held_out = [len(span) // HELD_OUT if span.start >= 100 else 0 for span in ranges]
    val_shares = even_shares(may_be_held_out, num_val // 2)
    left = [len(span) - share for span, share in zip(ranges, val_shares, strict=True)]
    train_shares = even_shares(left, num_train // 2)
    words = philox()
    train, val = [], []
    for span, for_val, for_train in zip(ranges, val_shares, train_shares, strict=True):
        order = shuffled(words, len(span)).tolist()
        val += [span[i] for i in order[:for_val]]
        train += [span[i] for i in order[for_val : for_val + for_train]]
    order = shuffled(words, NUM_DATES)
    dates = [datetime.date.fromordinal(FIRST_DATE.toordinal() + i) for i in order.tolist()]
    cut = num_val - len(val)
    val += dates[:cut]
    train += dates[cut : cut + num_train - len(train)]
    return [train[i] for i in shuffled(words, num_train)], [
        val[i] for i in shuffled(words, num_val)
    ]


def in_words(item: Item, language: str) -> str:
    """A number or a date in the words of `language`."""
    if not isinstance(item, datetime.date):
        return _number(item, language)
    from babel.dates import get_month_names

    month = get_month_names("wide", context="format", locale=language)[item.month]
    day, year = _day(item.day, language), _year(item.year, language)
    return LANGUAGES[language].pattern.format(day=day, month=month, year=year)


@functools.cache
def _day(day: int, language: str) -> str:
    rule = LANGUAGES[language]
    if day == 1 and rule.first:
        return rule.first
    return _number(day, language, "ordinal" if rule.ordinal else "cardinal")


@functools.cache
def _year(year: int, language: str) -> str:
    return _number(year, language, "year")


def _number(number: int, language: str, to: str = "cardinal") -> str:
    import num2words  # of the extra `numbers`

    return num2words.num2words(number, lang=language, to=to)
