"""How well a run translates: BLEU by sacrebleu (Post 2018), and the share of exact matches."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

from jaxformer.config import BeamConfig, TranslationConfig
from jaxformer.data.pairs import Pair
from jaxformer.decoding.beam import translate_all
from jaxformer.run.load import Run

SHOWN_SECONDS = 5.0
"""Time between two lines about how far the decoding is."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """A run's translations beside the references."""

    bleu: float
    """Corpus BLEU, 0 to 100, of detokenised text."""
    signature: str
    """How it was computed, in sacrebleu's words: figures compare under equal signatures only."""
    exact_match: float
    """Share of translations that are the reference to the letter, blanks at the ends aside."""
    translations: tuple[str, ...]
    """The best translation of each source, in the order of the pairs."""

    def exact_match_line(self) -> str:
        """Exact matches in words."""
        return f"exact match {self.exact_match:.2%} of {len(self.translations):,} held-out pairs"

    def bleu_line(self) -> str:
        """BLEU in words, with what it takes to compare it."""
        return f"BLEU {self.bleu:.2f} ({self.signature})"


def score(run: Run, pairs: Sequence[Pair], beam: BeamConfig) -> Scores:
    """Translate the sources by beam search and compare the best with the targets."""
    from sacrebleu.metrics import BLEU

    translations = decode(run, [pair.source for pair in pairs], beam)
    references = [pair.target for pair in pairs]
    bleu = BLEU()
    found = bleu.corpus_score(translations, [references])
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


def decode(run: Run, sources: Sequence[str], beam: BeamConfig) -> list[str]:
    """The best translation of each source; that of an empty one is empty."""
    assert isinstance(run.config, TranslationConfig)
    rows = {i: run.tokenizer.encode(text) for i, text in enumerate(sources) if text}
    places = list(rows)
    translations = [""] * len(sources)
    show = progress(len(places))
    best = translate_all(
        run.graphdef, run.params, run.config.model, list(rows.values()), run.specials, beam
    )
    for done, (index, (first, *_)) in enumerate(best, start=1):
        translations[places[index]] = run.text_of(first.tokens)
        show(done)
    return translations


def progress(total: int) -> Callable[[int], None]:
    """A function that says on standard error, now and then, how many are done."""
    said = time.monotonic()

    def show(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > SHOWN_SECONDS:
            said = time.monotonic()
            print(f"translated {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show
