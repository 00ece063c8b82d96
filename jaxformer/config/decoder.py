"""The decoder of today: its parts, and the published models that it composes by name."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from jaxformer.config.checks import Bounds, PositiveFloat, PositiveInt, check_fields
from jaxformer.config.models import Activation, ModelConfig
from jaxformer.errors import UserError

RopeScalingKind = Literal["none", "linear", "ntk", "yarn", "llama3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions reach beyond the context that a model was first trained with.

    The formula of each kind is in `layers/rotary.py`, which says where it comes from.
    """

    kind: RopeScalingKind = "none"
    """Frequencies as they are, all divided by the factor (`linear`), of a larger base (`ntk`), or
    divided the more the lower they are (`yarn`, `llama3`)."""
    factor: Annotated[float, Bounds(1)] = 1.0
    """s, how many times longer the text may be."""
    original_context_length: PositiveInt = 8192
    """T0, the context of the first training; `linear` does not use it."""
    low_frequency_factor: PositiveFloat = 1.0
    """`llama3`: wavelengths above T0 divided by it are divided by the factor."""
    high_frequency_factor: PositiveFloat = 4.0
    """`llama3`: wavelengths below T0 divided by it stay."""
    beta_fast: PositiveFloat = 32.0
    """`yarn`: frequencies that turn more often than this in T0 tokens stay."""
    beta_slow: PositiveFloat = 1.0
    """`yarn`: frequencies that turn less often than this are divided by the factor."""
    truncate: bool = True
    """`yarn`: whether the places of these two frequencies are rounded, outwards."""
    attention_factor: PositiveFloat | None = None
    """`yarn`: what queries and keys are multiplied by; by default 1 + ln(factor) / 10."""

    def __post_init__(self) -> None:
        check_fields(self, "model.rope-scaling.")
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise UserError(
                f"model.rope-scaling.low-frequency-factor {self.low_frequency_factor} is not below "
                f"the high one, {self.high_frequency_factor}: choose a lower one"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A decoder-only Transformer of today's parts: Llama, Mistral, Qwen, Gemma and their kin.

    Its blocks are pre-norm, with RMSNorm, rotary positions, grouped queries and a gated MLP.
    """

    num_kv_heads: PositiveInt
    """G, the number of key-value heads; each serves H / G query heads."""
    head_width: Annotated[int, Bounds(4)]
    """K, the width of a head: even; H K need not be the width of the model."""
    activation: Activation = "silu"
    """The nonlinearity of the MLP's gate: `silu` makes it SwiGLU, `gelu_tanh` or `gelu` GeGLU."""
    norm_unit_offset: bool = False
    """Whether norms multiply by 1 + scale, where the scale starts at zero (Gemma)."""
    post_norms: bool = False
    """Whether the output of each sub-layer is normalised too, before it is added (Gemma 2)."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised before they are rotated (Qwen 3)."""
    rope_base: Annotated[float, Bounds(1, low_open=True)] = 10_000.0
    """theta, whose powers are the wavelengths of the rotary positions over 2 pi."""
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    sliding_window: PositiveInt | None = None
    """W, the keys that a query sees, its own and those just before it; None for all (Mistral)."""
    attention_scale: PositiveFloat | None = None
    """What scores are multiplied by; by default 1 / sqrt(K)."""
    attention_soft_cap: PositiveFloat | None = None
    """c: scores become c tanh(score / c) before the softmax (Gemma 2)."""
    final_soft_cap: PositiveFloat | None = None
    """c: logits become c tanh(logit / c) (Gemma 2)."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by sqrt(D) where they enter (Gemma)."""
    tie_embeddings: bool = True
    """One matrix for input and output, or an output head of its own."""
    attention_bias: bool = False
    """Whether the projections to queries, keys and values have biases (Qwen 2)."""
    attention_out_bias: bool = False
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = False
    """Whether the projections of the MLP have biases."""

    @property
    def use_bias(self) -> bool:
        """Biases are by part: what names none has none."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num-heads {self.num_heads} is not a multiple of model.num-kv-heads "
                f"{self.num_kv_heads}: choose a multiple of it"
            )
        if self.head_width % 2:
            raise UserError(
                f"model.head-width {self.head_width} is odd: rotary positions need an even width"
            )

    def _check_attention(self) -> None:
        super()._check_attention()
        if self.attention == "flash" and self.attention_soft_cap is not None:
            raise UserError(
                "model.attention flash has no soft cap of scores: choose --model.attention auto"
            )


def _decoder(
    vocab_size: int,
    context_length: int,
    width: int,
    heads: tuple[int, int, int],
    mlp_width: int,
    num_layers: int,
    **options: Any,
) -> DecoderConfig:
    """`heads` are H, G and K."""
    num_heads, num_kv_heads, head_width = heads
    return DecoderConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        width=width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        num_layers=num_layers,
        **options,
    )


def _llama2(
    width: int, num_heads: int, num_kv_heads: int, mlp_width: int, num_layers: int
) -> DecoderConfig:
    heads = num_heads, num_kv_heads, 128
    return _decoder(32_000, 4096, width, heads, mlp_width, num_layers, tie_embeddings=False)


def _llama32(
    width: int, heads: tuple[int, int, int], mlp_width: int, num_layers: int
) -> DecoderConfig:
    scaling = RopeScaling(kind="llama3", factor=32.0)
    options = {"rope_base": 5e5, "rope_scaling": scaling}
    return _decoder(128_256, 131_072, width, heads, mlp_width, num_layers, **options)


def _llama3(width: int, heads: tuple[int, int, int], mlp_width: int, layers: int) -> DecoderConfig:
    options = {"rope_base": 5e5, "tie_embeddings": False}
    return _decoder(128_256, 8192, width, heads, mlp_width, layers, **options)


def _qwen2(
    vocab_size: int, width: int, heads: tuple[int, int, int], mlp_width: int, layers: int, tie: bool
) -> DecoderConfig:
    options = {"norm_epsilon": 1e-6, "rope_base": 1e6, "tie_embeddings": tie}
    return _decoder(
        vocab_size, 131_072, width, heads, mlp_width, layers, attention_bias=True, **options
    )


def _qwen3(
    width: int, heads: tuple[int, int, int], mlp_width: int, layers: int, tie: bool
) -> DecoderConfig:
    options = {"norm_epsilon": 1e-6, "rope_base": 1e6, "tie_embeddings": tie, "qk_norm": True}
    return _decoder(151_936, 40_960, width, heads, mlp_width, layers, **options)


def _gemma(
    width: int, heads: tuple[int, int, int], mlp_width: int, num_layers: int
) -> DecoderConfig:
    options = {
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
        "norm_unit_offset": True,
        "scale_embeddings": True,
    }
    return _decoder(256_000, 8192, width, heads, mlp_width, num_layers, **options)


DECODER_PRESETS: Mapping[str, DecoderConfig] = {
    "toy": _decoder(64, 17, 32, (4, 2, 6), 48, 2),
    "llama2-7b": _llama2(4096, 32, 32, 11_008, 32),
    "llama2-13b": _llama2(5120, 40, 40, 13_824, 40),
    "llama2-70b": _llama2(8192, 64, 8, 28_672, 80),
    "llama3-8b": _llama3(4096, (32, 8, 128), 14_336, 32),
    "llama3-70b": _llama3(8192, (64, 8, 128), 28_672, 80),
    "llama3.2-1b": _llama32(2048, (32, 8, 64), 8192, 16),
    "llama3.2-3b": _llama32(3072, (24, 8, 128), 8192, 28),
    "mistral-7b": _decoder(
        32_000,
        32_768,
        4096,
        (32, 8, 128),
        14_336,
        32,
        sliding_window=4096,
        tie_embeddings=False,
    ),
    "qwen2-0.5b": _qwen2(151_936, 896, (14, 2, 64), 4864, 24, True),
    "qwen2-1.5b": _qwen2(151_936, 1536, (12, 2, 128), 8960, 28, True),
    "qwen2-7b": _qwen2(152_064, 3584, (28, 4, 128), 18_944, 28, False),
    "qwen3-0.6b": _qwen3(1024, (16, 8, 128), 3072, 28, True),
    "qwen3-1.7b": _qwen3(2048, (16, 8, 128), 6144, 28, True),
    "qwen3-8b": _qwen3(4096, (32, 8, 128), 12_288, 36, False),
    "smollm2-135m": _decoder(49_152, 8192, 576, (9, 3, 64), 1536, 30, rope_base=1e5),
    "smollm2-360m": _decoder(49_152, 8192, 960, (15, 5, 64), 2560, 32, rope_base=1e5),
    "smollm2-1.7b": _decoder(49_152, 8192, 2048, (32, 32, 64), 8192, 24, rope_base=1.3e5),
    "gemma-2b": _gemma(2048, (8, 1, 256), 16_384, 18),
    "gemma-7b": _gemma(3072, (16, 16, 256), 24_576, 28),
}
"""Named decoders: `toy` for tests and lessons, the rest as published (135M to 70B)."""
