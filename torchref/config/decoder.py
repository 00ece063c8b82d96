"""The decoder of today: its parts."""

import dataclasses

from torchref.config.models import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions reach beyond the context of the first training."""

    kind: str = "none"
    factor: float = 1.0
    original_context_length: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A decoder-only Transformer of today's parts."""

    num_kv_heads: int
    head_width: int
    activation: str = "silu"
    norm_unit_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    sliding_window: int | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    scale_embeddings: bool = False
    tie_embeddings: bool = True
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
