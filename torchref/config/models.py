"""Models: their sizes and options."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """The settings of every layer."""

    width: int
    num_heads: int
    mlp_width: int
    num_layers: int
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-5
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
class BlockConfig(LayerConfig):
    """The settings of a block of 2017."""

    norm_placement: str = "pre"
    use_bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LayerConfig):
    """The settings of a whole model."""

    vocab_size: int
    context_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig, ModelConfig):
    """GPT: a causal decoder-only Transformer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig, ModelConfig):
    """The encoder-decoder Transformer."""

    share_embeddings: bool = True
    activation: str = "relu"
    norm_placement: str = "post"
    attention_dropout: bool = False
    initializer: str = "xavier"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(BlockConfig, ModelConfig):
    """BERT with its masked-language-model head."""

    num_segments: int = 2
    activation: str = "gelu"
    norm_placement: str = "post"
    norm_epsilon: float = 1e-12

    @property
    def residual_init_std(self) -> float:
        """Projections into the residual stream are initialised like all others."""
        return self.init_std
