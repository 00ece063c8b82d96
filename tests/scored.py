"""Translations with case, accents and punctuation, and their BLEU by its definition."""

import math
from collections import Counter
from collections.abc import Sequence

REFERENCES = (
    "Le Café d'Élise, fermé hier, ouvre à 9 heures.",
    "Die Straße nach Köln ist heute gesperrt!",
    "¿Dónde está el Niño de José Peña?",
)
TRANSLATIONS = (
    "Le café d'Élise, fermé hier, ouvre a 9 heures.",
    "Die Straße nach Köln ist Heute gesperrt!",
    "¿Dónde está el Niño de José Peña?",
)
"""The last alone is right; in the others a letter has another case or no accent."""
WORDS = (
    (
        "Le Café d'Élise , fermé hier , ouvre à 9 heures .",
        "Le café d'Élise , fermé hier , ouvre a 9 heures .",
    ),
    ("Die Straße nach Köln ist heute gesperrt !", "Die Straße nach Köln ist Heute gesperrt !"),
    ("¿Dónde está el Niño de José Peña ?", "¿Dónde está el Niño de José Peña ?"),
)
"""Each reference and its translation with a space between words, by the rules of `13a`."""


def bleu(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """exp(min(0, 1 - r / c)) (p1 p2 p3 p4)^(1/4) of words, in percent; Papineni et al. 2002."""
    logs = []
    for n in range(1, 5):
        matches = total = 0
        for reference, translation in pairs:
            ours, theirs = (
                Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
                for words in (translation, reference)
            )
            matches += (ours & theirs).total()
            total += ours.total()
        logs.append(math.log(matches / total))
    r, c = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return 100 * math.exp(min(0.0, 1 - r / c) + sum(logs) / 4)


BLEU = bleu([(reference.split(), translation.split()) for reference, translation in WORDS])
EXACT_MATCH = 1 / 3
