"""A trained run opened for use: its configuration, its tokenizer and its parameters.

    run = load_run("runs/demo")
    run.sample("def main(")         # of a language model
    run.translate(["a sentence"])   # of a Transformer
    run.evaluate()["loss"]

Only the parameters of a checkpoint are read, not the optimizer's state. A run without optimizer
state, such as an imported model's, is opened alike.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer import checkpoint
from jaxformer.batch import SpecialTokens
from jaxformer.checkpoint import PARAMS, Checkpoint
from jaxformer.config import (
    BeamConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TextConfig,
    TextRunConfig,
    TranslationConfig,
    require_positive,
)
from jaxformer.data.lost_text import percentage
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer
from jaxformer.data.translation import encode_source, special_tokens_of
from jaxformer.decoding.beam import Hypothesis, translate_all
from jaxformer.decoding.generate import generate
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model
from jaxformer.run import directory, evaluate, streaming
from jaxformer.runtime.compile_cache import enable_compile_cache
from jaxformer.runtime.jax_setup import start_jax
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import attention_lack
from jaxformer.tasks.task import TrainSpec
from jaxformer.terminal import say
from jaxformer.training.average import average as average_of


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds, ready to use on one device; layers are a list here."""

    directory: Path
    spec: TrainSpec
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: PyTree[Array]
    step: int
    """Optimizer steps that made these parameters."""
    data_fingerprint: str | None
    """SHA-256 of the text and tokenizer they were learned from; None if they are unknown."""
    text: str | None = None
    """The line of the log about this text, such as its name and size, if it is known."""
    lost: float = 0.0
    """Share of the characters of this text that its tokens do not give back, if it is known."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.spec.config

    @property
    def specials(self) -> SpecialTokens:
        """The tokens of a translation run that are not text."""
        return special_tokens_of(self._config_of(TranslationConfig).data, self.tokenizer.vocab_size)

    def encode_source(self, text: str) -> np.ndarray:
        """The tokens of a text to translate; none of a text without tokens."""
        config = self._config_of(TranslationConfig)
        return encode_source(config.data, self.tokenizer, text)

    @property
    def remark(self) -> str:
        """A line about texts that the run cannot write, since its tokenizer does; else empty."""
        if not self.lost:
            return ""
        return (
            f"the tokenizer of {self.directory} loses {percentage(self.lost)} of the characters "
            "that it was trained on: its texts are without them"
        )

    def sample(self, *prompts: str, **options: Any) -> list[str]:
        """The continuation of each prompt by a language model, without the prompt.

        Options are those of `stream`. The same seed gives the same texts.
        """
        _, *pieces = self.stream(prompts or ("",), **options)
        return ["".join(texts) for texts in zip(*pieces, strict=True)]

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 200,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
        first_row: int = 0,
    ) -> Iterator[list[str]]:
        """A piece of text for each prompt, step by step: first the prompts, then what follows.

        Args:
            prompts: texts to continue in one batch; an empty one stands for a newline.
            max_new_tokens: steps.
            sampling: how tokens are drawn; by default from the model's own distribution.
            stop: texts that end a continuation and are not part of it.
            seed: of the draws.
            first_row: number of the first prompt, where prompts are continued in several batches.

        Raises:
            UserError: before anything is computed, for a run of another kind and for prompts that
                the model cannot take.
        """
        config = self._config_of(TextRunConfig)
        rows = [streaming.encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        steps = generate(
            self.graphdef,
            self.params,
            config.model,
            rows,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            first_row=first_row,
        )
        return streaming.stream_texts(self.tokenizer, rows, steps, stop)

    def translate(
        self,
        texts: Sequence[str],
        search: BeamConfig | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """The best translation of each text by beam search; that of one without tokens is empty.

        `on_progress(done, total)` is called after each translation.

        Raises:
            UserError: for a run of another kind and for texts that the model cannot take.
        """
        encoded = enumerate(map(self.encode_source, texts))
        sources = {i: tokens for i, tokens in encoded if len(tokens)}
        places, best = list(sources), [""] * len(texts)
        found = self.hypotheses(list(sources.values()), search) if sources else ()
        for done, (index, (first, *_)) in enumerate(found, start=1):
            best[places[index]] = self.text_of(first.tokens)
            on_progress(done, len(places))
        return best

    def hypotheses(
        self, sources: Sequence[np.ndarray], search: BeamConfig | None = None, batch_size: int = 64
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """The best `search.n_best` translations of each source's tokens, by its index.

        Sources of similar length share a batch; results come as their batch is done.
        """
        config, search = self._config_of(TranslationConfig), search or BeamConfig()
        return translate_all(
            self.graphdef, self.params, config.model, sources, self.specials, search, batch_size
        )

    def text_of(self, tokens: np.ndarray) -> str:
        """Text of a translation's tokens, without those that only a padded vocabulary has."""
        return self.tokenizer.decode(tokens[tokens < self.tokenizer.vocab_size])

    def evaluate(
        self,
        split: Literal["val", "train"] = "val",
        search: BeamConfig | None = None,
        places: Mapping[str, Path] | None = None,
    ) -> dict[str, Any]:
        """What `jaxformer evaluate --json` writes: the loss over a split, in nats per token, etc.

        Of a translation run's validation split also BLEU and exact matches, decoded by `search`.

        Args:
            split: the side of the data.
            search: how sources are translated.
            places: where the data are now, by the names of the data's settings (`path`; `source`
                and `target`). Other data than the run learned from are scored as a whole, and the
                split is then called "other".

        Raises:
            UserError: the data are missing, or have changed and no place was given.
        """
        if isinstance(self.config, TextConfig):
            return evaluate.language_figures(self, split, places or {})
        return evaluate.translation_figures(self, split, search or BeamConfig(), places or {})

    def _config_of(self, config_type: type) -> Any:
        require_kind(self.config, config_type, self.directory)
        return self.config


def require_kind(config: RunConfig, config_type: type, run_dir: Path) -> None:
    """Refuse a run whose configuration is of another type."""
    if not isinstance(config, config_type):
        raise UserError(
            f"{run_dir} holds a {config.kind} run: use jaxformer {kind_of(config).command}, which "
            "is for such runs"
        )


def load_run(
    run_dir: Path | str,
    config_type: type[RunConfig] | None = None,
    *,
    step: int | None = None,
    best: bool = False,
    average: int = 1,
) -> Run:
    """Open a run at the given step, or else at its newest checkpoint whose parameters verify.

    Args:
        run_dir: the run's directory.
        config_type: of the runs that the caller works on, if it works on one kind only.
        step: of the checkpoint.
        best: take the checkpoint with the lowest validation loss of those that the run has kept.
        average: how many checkpoints to average, that one and those before it that verify
            (Vaswani et al. 2017, section 6.1).

    Checkpoints that do not verify are named on standard error, one line each; so is flash attention
    where the device has none, and `auto` takes its place. Files of the optimizer's state are not
    read, and may be damaged or missing.

    Raises:
        UserError: the directory is missing, holds no run or one of another kind, no checkpoint
            that can be used, or fewer than are to be averaged; or both a step and the best one are
            asked for.
    """
    run_dir = Path(run_dir)
    require_positive("average", average)
    if best and step is not None:
        raise UserError(f"--step {step} and --best name two checkpoints: give one of the two")
    spec, tokenizer = open_run(run_dir, config_type)
    start_jax()
    enable_compile_cache()
    model_config = unrolled(_computable(spec.config.model, run_dir))
    graphdef, expected = abstract_model(spec.model, model_config)
    checkpoints = run_dir / directory.CHECKPOINTS
    if best:
        found = checkpoint.read_best(checkpoints, [PARAMS])
    else:
        found = checkpoint.read_metadata(checkpoints, step, [PARAMS])
    check_own(run_dir, spec, tokenizer, found)
    if average == 1:
        params = checkpoint.load(checkpoints, found, {PARAMS: expected})[PARAMS]
    else:
        params, found = _read_average(checkpoints, expected, found, average)
    for line in found.skipped:
        say(line, sys.stderr)
    known = found.metadata
    learned_from = known.get("data"), known.get("text"), known.get("lost", 0.0)
    return Run(run_dir, spec, tokenizer, graphdef, params, found.step, *learned_from)


def unrolled(model: Any) -> Any:
    """The model with a list of layers: decoding caches and attention maps are of one layer each."""
    return dataclasses.replace(model, scan_layers=False)


def _computable(config: ModelConfig, run_dir: Path) -> ModelConfig:
    """The model with `auto` for an implementation of attention that is not to be had here."""
    lack = attention_lack(config, jax.devices()[0])
    if not lack:
        return config
    say(f"{run_dir}: {lack}: attention is computed otherwise here", sys.stderr)
    return dataclasses.replace(config, attention="auto")


def open_run(
    run_dir: Path, config_type: type[RunConfig] | None = None
) -> tuple[TrainSpec, Tokenizer]:
    """What a run learns and its tokenizer, before a checkpoint is read.

    Raises:
        UserError: the directory is missing, holds no run or one of another kind, or its tokenizer
            knows more tokens than its model.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a directory: name the --run-dir of a training run")
    config = load_config(run_dir / directory.CONFIG)
    if config_type is not None:
        require_kind(config, config_type, run_dir)
    tokenizer = load_tokenizer(run_dir / directory.TOKENIZER)
    needed = tokenizer.vocab_size + kind_of(config).num_specials(config)
    if needed > config.model.vocab_size:
        raise UserError(
            f"{run_dir / directory.TOKENIZER} knows {needed} tokens but the model "
            f"only {config.model.vocab_size}: restore the run's own tokenizer"
        )
    return kind_of(config).spec(config, tokenizer.vocab_size), tokenizer


def check_own(run_dir: Path, spec: TrainSpec, tokenizer: Tokenizer, found: Checkpoint) -> None:
    """Refuse a config.json or tokenizer.json that a checkpoint was not made with.

    Raises:
        UserError: naming each setting that differs, or the tokenizer's file.
    """
    advice = f"restore the run's own {directory.CONFIG}"
    directory.check_config(spec.config, directory.saved_config(found), run_dir, advice)
    directory.check_tokenizer(run_dir, tokenizer, found.metadata.get("tokenizer"))


def _read_average(
    checkpoints: Path, expected: PyTree, newest: Checkpoint, count: int
) -> tuple[PyTree[Array], Checkpoint]:
    """The mean of a checkpoint's parameters and those of the newest before it that verify."""
    skipped = list(newest.skipped)
    made_with = directory.saved_config(newest)
    until = [other for other in checkpoint.steps(checkpoints) if other <= newest.step]
    verified: list[Checkpoint] = []
    for candidate in directory.checkpoints_to_average(until, made_with):
        if len(verified) == count:
            break
        try:
            verified.append(
                newest
                if candidate == newest.step
                else checkpoint.read_metadata(checkpoints, candidate, [PARAMS])
            )
        except UserError as fault:
            skipped.append(str(fault))
    if len(verified) < count:
        faults = f" ({'; '.join(skipped)})" if skipped else ""
        raise UserError(
            f"{checkpoints} has {len(verified)} checkpoints to average, not {count}{faults}: "
            f"average at most {len(verified)}, or train with --checkpoint.keep {count}"
        )
    items = (checkpoint.load(checkpoints, found, {PARAMS: expected}) for found in verified)
    params = average_of(item[PARAMS] for item in items)
    return params, dataclasses.replace(newest, skipped=tuple(skipped))
