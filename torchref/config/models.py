"""Models: their sizes and options."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The settings of a Transformer block."""

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
        """Projections into the residual stream are initialised like all others."""
        return self.init_std
