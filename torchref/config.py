"""Model configurations, field for field those of jaxformer/config.py.

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
