"""Model configurations, field for field those of jaxformer/config.

The dimension key:  B batch  L query length  M key length  D model width  H query heads
K head width  F feed-forward width  N layers  V vocabulary
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a Transformer block needs to know."""

    width: int
    num_heads: int
    mlp_width: int
    num_layers: int
    activation: str = "gelu_tanh"
    norm_placement: str = "pre"
    norm_epsilon: float = 1e-5
    use_bias: bool = True
    dropout_rate: float = 0.0
    attention_dropout: bool = True
    initializer: str = "normal"
    init_std: float = 0.02
    dtype: str = "float32"

    @property
    def residual_init_std(self) -> float:
        """Initial standard deviation of projections into the residual stream."""
        return self.init_std / math.sqrt(2 * self.num_layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """GPT: a causal decoder-only Transformer."""

    vocab_size: int
    context_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, cosine decay and clipping."""

    peak_learning_rate: float = 1e-3
    floor_learning_rate: float = 1e-4
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the logits; the filters apply in the order of the fields."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig):
    """The encoder-decoder Transformer."""

    vocab_size: int
    context_length: int
    share_embeddings: bool = True
    activation: str = "relu"
    norm_placement: str = "post"
    attention_dropout: bool = False
    initializer: str = "xavier"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(BlockConfig):
    """BERT with its masked-language-model head."""

    vocab_size: int
    context_length: int
    num_segments: int = 2
    activation: str = "gelu"
    norm_placement: str = "post"
    norm_epsilon: float = 1e-12

    @property
    def residual_init_std(self) -> float:
        """Projections into the residual stream start like all others."""
        return self.init_std


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoamConfig:
    """Adam with the schedule of 2017: warm-up, then the inverse root."""

    factor: float = 1.0
    warmup_steps: int = 4000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    clip_norm: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search."""

    beam: int = 4
    length_penalty: float = 0.6
    n_best: int = 1
    extra_length: int = 50
