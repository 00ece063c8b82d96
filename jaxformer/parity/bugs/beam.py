"""Bugs planted in beam search."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.decoding import beam
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.mutation import SMALL, Bug, Plant, patched
from jaxformer.parity.proofs.beam import prove_beam
from jaxformer.parity.proofs.transformer import transformer_case

# A seed at which each of these bugs changes some hypothesis of the three-wide beam.
CASE: Case = transformer_case(dataclasses.replace(SMALL, masks=(), seed=25))


def planted(name: str, make: Callable[[Any], Any]) -> Plant:
    """A function of beam search replaced."""
    return patched(beam, name, make)


def identical_copies(first: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any) -> Any:
        beams = first(*args)
        return beams._replace(
            log_probs=jnp.broadcast_to(beams.log_probs[:, :1], beams.log_probs.shape)
        )

    return made


def padding_allowed(allowed: Callable[..., Any]) -> Callable[..., Any]:
    def made(length: Any, longest: Any, specials: Any, vocab_size: int) -> Any:
        elsewhere = dataclasses.replace(specials, padding=specials.start)
        return allowed(length, longest, elsewhere, vocab_size)

    return made


def first_finished(can_improve: Callable[..., Any]) -> Callable[..., Any]:
    return lambda live, done, *args: can_improve(live, done, *args) & ~jnp.isfinite(done[:, 0])


def whole_rows(pad_sources: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any) -> Any:
        source, valid, *rest = pad_sources(*args)
        return source, valid | True, *rest

    return made


def forced_end_certain(log_probabilities: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever is most likely of all tokens counts as certain, as a forced token would."""
    return lambda logits: (
        log_probabilities(logits)
        .at[..., -1]
        .max(jnp.where(logits[..., -1] == logits.max(-1), 0.0, -jnp.inf))
    )


def other_sentence(beam_logits: Callable[..., Any]) -> Callable[..., Any]:
    """The caches of the sentence before."""

    def made(model: Any, beams: Any, *args: Any) -> Any:
        caches = jax.tree.map(lambda cache: jnp.roll(cache, 1, axis=0), beams.caches)
        return beam_logits(model, beams._replace(caches=caches), *args)

    return made


def forgetting(advance: Callable[..., Any]) -> Callable[..., Any]:
    """Of the hypotheses that were finished before this step only the best is kept."""

    def made(beams: Any, *args: Any) -> Any:
        best = beams.finished_scores.at[:, 1:].set(-jnp.inf)
        return advance(beams._replace(finished_scores=best), *args)

    return made


def reviving(advance: Callable[..., Any]) -> Callable[..., Any]:
    """Dead rows are as likely as the worst living row of the batch."""

    def made(beams: Any, *args: Any) -> Any:
        alive = beams.log_probs > -jnp.inf
        worst = jnp.where(alive, beams.log_probs, 0.0).min()
        return advance(beams._replace(log_probs=jnp.where(alive, beams.log_probs, worst)), *args)

    return made


PLANTS = {
    "score not normalised": planted("normalised", lambda f: lambda log_p, *_: log_p),
    "penalty by length without the end": planted(
        "normalised", lambda f: lambda log_p, length, alpha: f(log_p, length - 1, alpha)
    ),
    "penalty by length with the start": planted(
        "normalised", lambda f: lambda log_p, length, alpha: f(log_p, length + 1, alpha)
    ),
    "a likely end counted as certain": planted("log_probabilities", forced_end_certain),
    "caches taken from another sentence": planted("beam_logits", other_sentence),
    "earlier finished hypotheses forgotten": planted("advance", forgetting),
    "dead rows live again": planted("advance", reviving),
    "finished beams still growing": planted(
        "alive_candidates", lambda f: lambda log_p, ends: log_p
    ),
    "unlikely ends finish too": planted(
        "finished_candidates", lambda f: lambda log_p, ends: jnp.where(ends, log_p, -jnp.inf)
    ),
    "ancestry not inherited by the survivors": planted(
        "inherit", lambda f: lambda ancestry, rows: ancestry
    ),
    "token not in the ancestry of its own row": planted(
        "add_slots", lambda f: lambda ancestry, step: ancestry
    ),
    "slots of two steps overlap": planted(
        "row_slots", lambda f: lambda step, width: f(step, width) - step
    ),
    "stops at the first finished hypothesis": planted("can_improve", first_finished),
    "best live score not divided by the penalty": planted(
        "can_improve", lambda f: lambda live, done, longest, alpha: f(live, done, longest, 0.0)
    ),
    "log-softmax missing": planted("log_probabilities", lambda f: lambda logits: logits),
    "end forced one step early": planted(
        "allowed_tokens", lambda f: lambda length, *args: f(length + 1, *args)
    ),
    "padding token produced": planted("allowed_tokens", padding_allowed),
    "search begins with identical copies": planted("init_beams", identical_copies),
    "padding of the source attended to": planted("pad_sources", whole_rows),
}

BUGS = [Bug(name, "beam", plant, prove_beam, CASE) for name, plant in PLANTS.items()]
