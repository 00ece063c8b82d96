"""The figures of a run: the loss over its data, and how well a Transformer translates."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from jaxformer.config import BeamConfig, MaskedLanguageConfig, MeshConfig
from jaxformer.data.batches import Tokens, evaluation_batches
from jaxformer.data.corpus import fingerprint_with as text_fingerprint
from jaxformer.data.corpus import read_text
from jaxformer.data.lost_text import lost_share
from jaxformer.data.masked_batches import masked_evaluation_batches
from jaxformer.data.pair_batches import evaluation_pair_batches
from jaxformer.data.pairs import Pair
from jaxformer.data.parallel_text import read_aligned
from jaxformer.data.shards import are_shards, prepare
from jaxformer.data.translation import encode_pairs, prepare_pairs
from jaxformer.data.translation import fingerprint_with as pairs_fingerprint
from jaxformer.errors import UserError
from jaxformer.evaluation.bleu import score
from jaxformer.evaluation.loss import Evaluation, means
from jaxformer.extras import require_extra
from jaxformer.run.directory import changed_data
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.tasks.masked_language import VALIDATION, masking
from jaxformer.tasks.translation import check_lengths
from jaxformer.training.step import make_eval_step

if TYPE_CHECKING:
    from jaxformer.run.load import Run

Split = Literal["val", "train"]
PROGRESS_SECONDS = 5.0
"""Time between two lines about the progress of decoding."""


def language_figures(run: "Run", split: Split, places: Mapping[str, Path]) -> dict[str, Any]:
    """Loss, accuracy and bits per byte of a language model over a split of its text, or another.

    Of BERT they are those of the masked tokens, without bits per byte. These are None if the
    tokenizer loses some of the text, or where tokens alone are there: other shards than the run's
    are refused, since what made them is unknown.
    """
    config: Any = run.config
    settings = moved(run, places)
    label: str = split
    shards = are_shards(settings.path)
    num_bytes: int | None
    tokens: Tokens
    if not shards and is_other(run, places, lambda: text_fingerprint(settings, run.tokenizer)):
        label = other(split)
        text = read_text(settings.path)
        tokens, num_bytes = run.tokenizer.encode(text), len(text.encode())
        lost = lost_share(run.tokenizer, [text])
    else:
        data = prepare(settings)
        require_same(run, data)
        tokens, num_bytes = {
            "train": (data.train, data.train_bytes),
            "val": (data.val, data.val_bytes),
        }[split]
        lost = data.lost
    rows = config.batch_size // config.accumulation
    batches = text_batches(config, tokens, rows, run.tokenizer.vocab_size)
    result, accuracy = evaluate_params(run, batches)
    figures: dict[str, Any] = {
        "step": run.step,
        "split": label,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": accuracy,
        "tokens": result.num_tokens,
    }
    if isinstance(config, MaskedLanguageConfig):
        return figures
    return figures | {
        "bits_per_byte": (
            None if lost or num_bytes is None else result.bits_per_byte(len(tokens) / num_bytes)
        ),
        "bytes": num_bytes,
    }


def text_batches(config: Any, tokens: Tokens, rows: int, tokenizer_size: int) -> Iterator[Any]:
    """The batches that score every token, or of BERT the masked ones."""
    length = config.model.context_length
    if isinstance(config, MaskedLanguageConfig):
        masks = masking(config, tokenizer_size, VALIDATION)
        return masked_evaluation_batches(tokens, rows, length, masks)
    return evaluation_batches(tokens, rows, length)


def translation_figures(
    run: "Run", split: Split, search: BeamConfig, places: Mapping[str, Path]
) -> dict[str, Any]:
    """Loss and accuracy of the targets; but for training pairs also BLEU and exact matches."""
    config: Any = run.config
    settings = moved(run, places)
    label: str = split
    if split == "val":
        require_extra("translate", "BLEU of the validation pairs")
    texts: Sequence[Pair] | None
    if is_other(run, places, lambda: pairs_fingerprint(settings, run.tokenizer)):
        label = other(split)
        texts = read_aligned("source", settings.source, "target", settings.target)
        pairs = encode_pairs(texts, run.tokenizer, settings)
        check_lengths(config.model.context_length, pairs)
    else:
        data = prepare_pairs(settings)
        require_same(run, data)
        pairs = data.val if split == "val" else data.train
        texts = data.val_texts if split == "val" else None
    batches = evaluation_pair_batches(pairs, run.specials, config.batch_tokens)
    result, accuracy = evaluate_params(run, batches)
    figures: dict[str, Any] = {
        "step": run.step,
        "split": label,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": accuracy,
        "tokens": result.num_tokens,
        "pairs": len(pairs),
    }
    if texts is None:
        return figures
    translations = run.translate([pair.source for pair in texts], search, print_progress())
    scores = score(translations, [pair.target for pair in texts])
    return figures | {
        "beam": search.beam,
        "length_penalty": search.length_penalty,
        "bleu": scores.bleu,
        "signature": scores.signature,
        "exact_match": scores.exact_match,
    }


def moved(run: "Run", places: Mapping[str, Path]) -> Any:
    """The settings of the run's data with the places where these are now."""
    unknown = [name for name in places if not hasattr(run.config.data, name)]
    if unknown:
        flags = " and ".join(f"--data.{name.replace('_', '-')}" for name in unknown)
        raise UserError(f"{run.directory} holds a {run.config.kind} run: leave out {flags}")
    return dataclasses.replace(run.config.data, **places)


def is_other(run: "Run", places: Mapping[str, Path], fingerprint: Callable[[], str]) -> bool:
    """Whether places were given that hold other data than the run learned from.

    Data that cannot be divided as the run's were, since they are too few, are others.
    """
    try:
        return bool(places) and run.data_fingerprint != fingerprint()
    except UserError:
        return True


def other(split: Split) -> str:
    """What other data are called, which have no split."""
    if split == "train":
        raise UserError("the data are others than those of the run: leave out --split train")
    return "other"


def evaluate_params(run: "Run", batches: Iterable[Any]) -> tuple[Evaluation, float]:
    """The mean loss and the accuracy of a run's parameters over the batches, on one device."""
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    objectives = run.spec.eval_objective, run.spec.accuracy
    steps = [make_eval_step(run.graphdef, objective) for objective in objectives]

    @jax.jit  # one function for both: XLA merges their forward passes
    def eval_step(params: Any, batch: Any) -> list[Any]:
        return [step(params, batch) for step in steps]

    (loss, count), (accuracy, _) = means(eval_step, run.params, batches, batch_sharding(mesh))
    return Evaluation(loss, count), accuracy


def require_same(run: "Run", data: Any) -> None:
    """Refuse data that are not those of the run; those of an imported model are unknown."""
    if run.data_fingerprint not in (None, data.fingerprint):
        changed = changed_data(run.config.data, run.text, data.description)
        raise UserError(f"the text that {run.directory} learned from {changed}")


def print_progress() -> Callable[[int, int], None]:
    """A function that prints on standard error, now and then, how many translations are done."""
    printed = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > PROGRESS_SECONDS:
            printed = time.monotonic()
            print(f"translated {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show
