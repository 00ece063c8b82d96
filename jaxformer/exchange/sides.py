"""A model that is run by the tool it is written for: the sides of a comparison.

Both give the log-probabilities that a model has for the tokens of a text, in natural units:

    of a GPT       after each token, of the next one
    of BERT        at each token, of the token there
    of a Transformer   after each token of a target, of the next one, given the source
"""

import abc
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxformer.config import BeamConfig, MaskedLanguageConfig, SamplingConfig, TranslationConfig
from jaxformer.decoding.generate import generate
from jaxformer.errors import UserError
from jaxformer.models.functional import merge
from jaxformer.run.directory import CHECKPOINTS
from jaxformer.run.load import Run, load_run

CAUSAL, MASKED, PAIRS = "GPT", "BERT", "Transformer"
"""What a side does, by the name of our model."""
GREEDY = SamplingConfig(temperature=0.0)


class Row(NamedTuple):
    """A text as tokens."""

    tokens: Int[np.ndarray, " L"]
    """Of a Transformer, the start token and the target."""
    source: Int[np.ndarray, " M"] | None = None
    """Of a Transformer."""


class Side(abc.ABC):
    """A model and the tool that runs it."""

    name: str
    """What it is called in a report."""
    task: str
    """CAUSAL, MASKED or PAIRS."""
    vocab_size: int
    context_length: int

    @abc.abstractmethod
    def encode(self, text: str) -> Int[np.ndarray, " L"]:
        """The tokens of a text; UserError if it has none."""

    @abc.abstractmethod
    def log_probs(self, row: Row) -> Float[np.ndarray, "L V"]:
        """log p of every token at each place of the row."""

    def extended(self, row: Row, count: int) -> Row:
        """The row with as many tokens more, the likeliest one after the other."""
        tokens = row.tokens
        for _ in range(min(count, self.context_length - len(tokens))):
            likeliest = self.log_probs(row._replace(tokens=tokens))[-1].argmax()
            tokens = np.append(tokens, likeliest).astype(np.int32)
        return row._replace(tokens=tokens)


class RunSide(Side):
    """A run, by jaxformer."""

    def __init__(self, run: Run):
        self.run, self.name = run, str(run.directory)
        kinds = {MaskedLanguageConfig: MASKED, TranslationConfig: PAIRS}
        self.task = next(
            (task for kind, task in kinds.items() if isinstance(run.config, kind)), CAUSAL
        )
        self.vocab_size = run.config.model.vocab_size
        self.context_length = run.config.model.context_length

        def compute(params: Any, *rows: Any) -> Any:
            logits = merge(run.graphdef, params)(*rows)[0]
            return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

        self._compute = jax.jit(compute)

    def encode(self, text: str) -> Int[np.ndarray, " L"]:
        return (
            self.run.encode_source(text) if self.task == PAIRS else self.run.tokenizer.encode(text)
        )

    def log_probs(self, row: Row) -> Float[np.ndarray, "L V"]:
        rows = [row.tokens] if row.source is None else [row.source, row.tokens]
        return np.asarray(self._compute(self.run.params, *(jnp.asarray(r)[None] for r in rows)))

    def extended(self, row: Row, count: int) -> Row:
        if self.task == CAUSAL:
            config: Any = self.run.config.model
            count = min(count, self.context_length - len(row.tokens))
            if count < 1:
                return row
            steps = generate(
                self.run.graphdef, self.run.params, config, [row.tokens],
                max_new_tokens=count, sampling=GREEDY,
            )  # fmt: skip
            more = [int(token) for (token,) in steps]
            return row._replace(tokens=np.append(row.tokens, more).astype(np.int32))
        assert row.source is not None
        _, [best] = next(self.run.hypotheses([row.source], BeamConfig(beam=1, n_best=1)))
        found = [*best.tokens, self.run.specials.end][:count]
        tokens = np.append(row.tokens, found).astype(np.int32)
        return row._replace(tokens=tokens[: self.context_length])


class TransformersSide(Side):
    """A Hugging Face directory or a .gguf file, by transformers in float32."""

    def __init__(self, path: Path):
        if importlib.util.find_spec("transformers") is None:
            raise UserError(f"{path} is run by transformers: pip install transformers torch")
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch, self.name = torch, str(path)
        place: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            place = {
                "pretrained_model_name_or_path": path.parent,
                "gguf_file": path.name,
            }
        try:
            config = transformers.AutoConfig.from_pretrained(**place, local_files_only=True)
            self.task = _task_of(config)
            loader = {
                CAUSAL: transformers.AutoModelForCausalLM,
                MASKED: transformers.AutoModelForMaskedLM,
                PAIRS: transformers.AutoModelForSeq2SeqLM,
            }[self.task]
            self.model, loaded = loader.from_pretrained(
                **place,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:
            first = " ".join(str(error).split())[:200]
            raise UserError(f"transformers cannot load {path}: {first}") from error
        self.unfit = {key: sorted(map(str, names)) for key, names in loaded.items() if names}
        """Names that the file lacks, has too many, or has in another shape."""
        self._place = place
        self._tokenizer: Any = None
        self.vocab_size = config.vocab_size
        self.context_length = config.max_position_embeddings
        self.model.eval()
        self.start = config.decoder_start_token_id if self.task == PAIRS else None

    @property
    def tokenizer(self) -> Any:
        """The directory's tokenizer, as transformers opens it."""
        if self._tokenizer is None:
            import transformers

            try:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    **self._place, local_files_only=True
                )
            except Exception as error:
                first = " ".join(str(error).split())[:200]
                raise UserError(
                    f"transformers finds no tokenizer in {self.name}: {first}"
                ) from error
        return self._tokenizer

    def encode(self, text: str) -> Int[np.ndarray, " L"]:
        ids = self.tokenizer(text, add_special_tokens=self.task == PAIRS)["input_ids"]
        return np.asarray(ids, np.int32)

    def log_probs(self, row: Row) -> Float[np.ndarray, "L V"]:
        tokens = self._torch.tensor(row.tokens, dtype=self._torch.int64)[None]
        inputs = {"input_ids": tokens}
        if row.source is not None:
            source = self._torch.tensor(row.source, dtype=self._torch.int64)[None]
            inputs = {"input_ids": source, "decoder_input_ids": tokens}
        with self._torch.no_grad():
            logits = self.model(**inputs).logits[0].float()
        return self._torch.log_softmax(logits, -1).numpy()


def _task_of(config: Any) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return PAIRS
    masked = any("MaskedLM" in name for name in config.architectures or ())
    return MASKED if masked or config.model_type == "bert" else CAUSAL


def open_side(name: str) -> Side:
    """The model at a path, with the tool that it is written for.

    Raises:
        UserError: there is no run, no Hugging Face directory and no .gguf file at the path.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return TransformersSide(path)
    if not path.is_dir():
        raise UserError(
            f"{name} is not there: name a run, a Hugging Face directory or a .gguf file"
        )
    if (path / CHECKPOINTS).is_dir() or _is_run(path):
        return RunSide(load_run(path))
    return TransformersSide(path)


def _is_run(path: Path) -> bool:
    try:
        return "kind" in json.loads((path / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, TypeError):
        return False


def drawn_rows(sides: Sequence[Side], count: int, length: int, start: int | None) -> list[Row]:
    """Rows of random tokens that all sides know, the same each time."""
    rng = np.random.default_rng(0)
    size = min(side.vocab_size for side in sides)
    length = max(1, min(length, *(side.context_length // 2 for side in sides)))
    found = [rng.integers(0, size, length).astype(np.int32) for _ in range(count)]
    if start is None:
        return [Row(tokens) for tokens in found]
    return [Row(np.array([start], np.int32), tokens) for tokens in found]
