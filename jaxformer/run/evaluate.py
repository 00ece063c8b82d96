"""The figures of a run: the loss over its data, and how well a Transformer translates."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import jax

from jaxformer.config import BeamConfig, MeshConfig
from jaxformer.data.batches import evaluation_batches
from jaxformer.data.corpus import prepare
from jaxformer.data.pair_batches import evaluation_pair_batches
from jaxformer.data.translation import prepare_pairs
from jaxformer.errors import UserError
from jaxformer.evaluation.bleu import score
from jaxformer.evaluation.loss import Evaluation, evaluate
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.training.step import make_eval_step

if TYPE_CHECKING:
    from jaxformer.run.load import Run

Split = Literal["val", "train"]
PROGRESS_SECONDS = 5.0
"""Time between two lines about the progress of decoding."""


def language_figures(run: "Run", split: Split) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of a GPT over a split of its text.

    Bits per byte are None if the tokenizer loses some of the text.
    """
    config: Any = run.config
    data = prepare(config.data)
    require_same(run, data.fingerprint)
    tokens, num_bytes = {
        "train": (data.train, data.train_bytes),
        "val": (data.val, data.val_bytes),
    }[split]
    batches = evaluation_batches(tokens, config.batch_size, config.model.context_length)
    result = evaluate_params(run, batches)
    return {
        "step": run.step,
        "split": split,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": None if data.lost else result.bits_per_byte(len(tokens) / num_bytes),
        "tokens": result.num_tokens,
        "bytes": num_bytes,
    }


def translation_figures(run: "Run", split: Split, search: BeamConfig) -> dict[str, Any]:
    """Loss and perplexity of the targets; of the validation pairs also BLEU and exact matches."""
    config: Any = run.config
    data = prepare_pairs(config.data)
    require_same(run, data.fingerprint)
    pairs = data.val if split == "val" else data.train
    result = evaluate_params(run, evaluation_pair_batches(pairs, run.specials, config.batch_tokens))
    figures: dict[str, Any] = {
        "step": run.step,
        "split": split,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "tokens": result.num_tokens,
        "pairs": len(pairs),
    }
    if split == "train":
        return figures
    sources = [pair.source for pair in data.val_texts]
    scores = score(
        run.translate(sources, search, print_progress()), [pair.target for pair in data.val_texts]
    )
    return figures | {
        "beam": search.beam,
        "length_penalty": search.length_penalty,
        "bleu": scores.bleu,
        "signature": scores.signature,
        "exact_match": scores.exact_match,
    }


def evaluate_params(run: "Run", batches: Iterable[Any]) -> Evaluation:
    """The mean loss of a run's parameters over the batches, on one device."""
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    eval_step = jax.jit(make_eval_step(run.graphdef, run.spec.eval_objective))
    return evaluate(eval_step, run.params, batches, batch_sharding(mesh))


def require_same(run: "Run", fingerprint: str) -> None:
    """Refuse data that are not those of the run; those of an imported model are unknown."""
    if run.data_fingerprint not in (None, fingerprint):
        raise UserError(
            f"the text that {run.directory} learned from has changed: restore it to evaluate"
        )


def print_progress() -> Callable[[int, int], None]:
    """A function that prints on standard error, now and then, how many translations are done."""
    printed = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > PROGRESS_SECONDS:
            printed = time.monotonic()
            print(f"translated {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show
