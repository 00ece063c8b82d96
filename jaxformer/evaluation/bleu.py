"""How good translations are: BLEU by sacrebleu (Post 2018), and the fraction of exact matches."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Scores:
    """Translations compared with their references."""

    bleu: float
    """Corpus BLEU, 0 to 100, of detokenised text."""
    signature: str
    """sacrebleu's settings: figures compare under equal signatures only."""
    exact_match: float
    """Fraction of translations that equal the reference, apart from white space at the ends."""
    translations: tuple[str, ...]
    """The translations, in order."""

    def exact_match_line(self) -> str:
        """Exact matches in words."""
        return f"exact match {self.exact_match:.2%} of {len(self.translations):,} held-out pairs"

    def bleu_line(self) -> str:
        """BLEU in words, with its signature."""
        return f"BLEU {self.bleu:.2f} ({self.signature})"


def score(translations: Sequence[str], references: Sequence[str]) -> Scores:
    """The scores of translations, each beside its reference."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU()
    found = bleu.corpus_score(list(translations), [list(references)])
    matches = [
        ours.strip() == theirs.strip()
        for ours, theirs in zip(translations, references, strict=True)
    ]
    return Scores(
        bleu=found.score,
        signature=str(bleu.get_signature()),
        exact_match=sum(matches) / len(matches),
        translations=tuple(translations),
    )
