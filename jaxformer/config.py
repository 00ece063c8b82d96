"""Every default of jaxformer: frozen configurations and named presets. Imports nothing heavy.

The dimension key, used for the same thing in code, docstrings, shape annotations and einsums:

    B batch            L query length     M key length       D model width
    H query heads      G key-value heads  K head width       F feed-forward width
    N layers           V vocabulary
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from jaxformer.errors import UserError

Activation = Literal["relu", "gelu", "gelu_tanh"]
NormPlacement = Literal["pre", "post"]
DType = Literal["float32", "bfloat16", "float64"]
LARGEST = 2**31 - 1
"""Sizes and counts are 32-bit integers."""


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero, or too large to count with, by its flag's name."""
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} {value} is not positive: choose a number above 0")
    if value > LARGEST:
        raise UserError(f"{name} {value} is too large: choose one of at most {LARGEST}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a Transformer block needs to know; every model's config is one of these with more."""

    width: int
    """D, the width of the residual stream."""
    num_heads: int
    """H, the number of query heads; the head width is K = D / H."""
    mlp_width: int
    """F, the inner width of the feed-forward network."""
    num_layers: int
    """N, the number of blocks."""
    activation: Activation = "gelu_tanh"
    """The feed-forward nonlinearity; `gelu` is the exact form, `gelu_tanh` GPT-2's."""
    norm_placement: NormPlacement = "pre"
    """LayerNorm before each sub-layer (GPT-2) or after each residual sum (2017)."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside LayerNorm's square root."""
    use_bias: bool = True
    """Whether projections and LayerNorms have biases."""
    dropout_rate: float = 0.0
    """Probability that a unit is dropped, at every dropout of the model."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    dtype: DType = "float32"
    """Type of activations and matrix products; softmax, norms and loss stay in float32 or wider."""

    @property
    def head_width(self) -> int:
        """K = D / H."""
        return self.width // self.num_heads

    @property
    def param_dtype(self) -> str:
        """Type the parameters are kept in: float32 unless the model computes in float64."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def residual_init_std(self) -> float:
        """Initial standard deviation of projections into the residual stream: std / sqrt(2N)."""
        return self.init_std / math.sqrt(2 * self.num_layers)

    def __post_init__(self) -> None:
        for name in ("width", "num_heads", "mlp_width", "num_layers", "norm_epsilon"):
            require_positive(f"model.{name.replace('_', '-')}", getattr(self, name))
        if not (self.init_std >= 0 and math.isfinite(self.init_std)):
            raise UserError(f"model.init-std {self.init_std} is not a size: choose 0.02 or so")
        for name, kinds in (
            ("activation", get_args(Activation)),
            ("norm_placement", get_args(NormPlacement)),
            ("dtype", get_args(DType)),
        ):
            if getattr(self, name) not in kinds:
                raise UserError(
                    f"model.{name.replace('_', '-')} {getattr(self, name)} is unknown: "
                    f"choose one of {', '.join(kinds)}"
                )
        if self.width % self.num_heads:
            raise UserError(
                f"model.width {self.width} is not divisible by model.num-heads {self.num_heads}: "
                "choose a width that is a multiple of the number of heads"
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(
                f"model.dropout-rate {self.dropout_rate} is not a probability below 1: "
                "choose one from 0 to 0.99"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """GPT: a causal decoder-only Transformer (Radford et al. 2019, section 2.3)."""

    vocab_size: int
    """V, the number of tokens; 0 in a training config stands for the tokenizer's number."""
    context_length: int
    """T, the longest sequence; one learned position each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("model.context-length", self.context_length)
        if self.vocab_size < 0:
            raise UserError(
                f"model.vocab-size {self.vocab_size} is negative: choose 0 for the tokenizer's"
            )

    def num_parameters(self) -> int:
        """Parameters counted by formula: VD + TD + N(4D² + 2DF + biases and norms) + final norm."""
        D, F = self.width, self.mlp_width
        bias = int(self.use_bias)
        norm = D + bias * D
        attention = 4 * (D * D + bias * D)
        mlp = D * F + bias * F + F * D + bias * D
        embeddings = (self.vocab_size + self.context_length) * D
        return embeddings + self.num_layers * (attention + mlp + 2 * norm) + norm


def _gpt2(width: int, num_heads: int, num_layers: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50_257,
        context_length=1024,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        num_layers=num_layers,
        dropout_rate=0.1,
    )


GPT_PRESETS: Mapping[str, GPTConfig] = {
    "toy": GPTConfig(
        vocab_size=64, context_length=16, width=32, num_heads=4, mlp_width=128, num_layers=2
    ),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 16, 24),
    "gpt2-large": _gpt2(1280, 20, 36),
    "gpt2-xl": _gpt2(1600, 25, 48),
}
"""Named GPT sizes: `toy` for tests and lessons, the rest as published (124M to 1.56B)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text a run learns from and how it becomes tokens."""

    path: Path | None = None
    """A text file, or a directory of them; by default the running Python's standard library."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on the text) or the path of a tokenizer.json."""
    vocab_size: int = 4096
    """Vocabulary of a trained `bpe` tokenizer; the other kinds bring their own."""
    val_fraction: float = 0.1
    """Share of the text kept for validation."""

    def __post_init__(self) -> None:
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(
                f"data.val-fraction {self.val_fraction} leaves no text on one side: "
                "choose a share between 0 and 1, such as 0.1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, cosine decay and clipping (Loshchilov & Hutter 2019, algorithm 2)."""

    peak_learning_rate: float = 1e-3
    """Learning rate at the end of the warm-up."""
    floor_learning_rate: float = 1e-4
    """Learning rate at the end of the cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay, applied to matrices only."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("peak_learning_rate", "epsilon", "clip_norm"):
            require_positive(f"optimizer.{name.replace('_', '-')}", getattr(self, name))
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(
                    f"optimizer.{name} {getattr(self, name)} is no decay: choose 0 to 0.9999"
                )
        for name in ("floor_learning_rate", "warmup_steps", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST:
                raise UserError(
                    f"optimizer.{name.replace('_', '-')} {value} is out of range: "
                    f"choose one from 0 to {LARGEST}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 takes all that are left."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share the parameters of one copy and split the batch further."""
    tensor: int = 1
    """Devices that share each layer's heads and feed-forward width."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept, besides the one with the best validation loss."""

    def __post_init__(self) -> None:
        require_positive("checkpoint.every", self.every)
        require_positive("checkpoint.keep", self.keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run of a GPT: what config.json holds and `--help` shows."""

    model: GPTConfig
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    steps: int = 2000
    """Optimizer steps of the whole schedule."""
    batch_size: int = 12
    """Sequences in a step, over all devices and accumulation slices."""
    accumulation: int = 1
    """Slices the batch is cut into, one after the other, to save memory."""
    eval_every: int = 250
    """Steps between validation losses."""
    eval_tokens: int = 2**20
    """Validation tokens scored each time; `jaxformer evaluate` always scores all of them."""
    seed: int = 0
    """Seed of the initial weights, the dropout and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "eval_every", "eval_tokens"):
            require_positive(name.replace("_", "-"), getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} is out of range: choose one from 0 to 4294967295")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch-size {self.batch_size} is not divisible by accumulation "
                f"{self.accumulation}: choose a batch size that is a multiple of it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run lives and how far this process takes it; not part of what is learned."""

    run_dir: Path
    """Directory of the run: config, tokenizer, metrics, checkpoints and curves."""
    stop_after: int | None = None
    """End cleanly, checkpoint written, after this many steps of the schedule."""
    resume: bool = False
    """Continue the run that the directory holds from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.stop_after is not None:
            require_positive("stop-after", self.stop_after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the logits; the filters apply in the order of the fields."""

    repetition_penalty: float = 1.0
    """Weakens tokens that the text already holds; 1 leaves them alone, 1.2 is the usual value."""
    temperature: float = 1.0
    """Divides the logits: below 1 sharper, above 1 flatter; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the K likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities sum to at least P."""
    min_p: float | None = None
    """Draw from tokens at least P times as probable as the likeliest."""

    def __post_init__(self) -> None:
        require_positive("repetition-penalty", self.repetition_penalty)
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature} is out of range: choose 0 for the likeliest "
                "token, or a number of at least 1e-06"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k {self.top_k} leaves no token: choose 1 or more")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p {self.top_p} is out of range: choose one above 0, at most 1")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min-p {self.min_p} is out of range: choose a number from 0 to 1")
