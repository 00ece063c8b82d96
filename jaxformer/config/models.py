"""Models: their sizes and options, and the published ones by name."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from jaxformer.config.checks import (
    NaturalInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    check_fields,
)
from jaxformer.config.precision import PRECISIONS, DType, Precision
from jaxformer.errors import UserError

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
PlainActivation = Literal["relu", "gelu", "gelu_tanh"]
"""Of an MLP without a gate."""
NormPlacement = Literal["pre", "post"]
Initializer = Literal["normal", "xavier"]
Remat = Literal["none", "dots", "full"]
AttentionImplementation = Literal["auto", "plain", "query_blocks", "flash", "blockwise"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What every layer needs to know; every model's config is one of these with more."""

    width: PositiveInt
    """D, the width of the residual stream."""
    num_heads: PositiveInt
    """H, the number of query heads."""
    mlp_width: PositiveInt
    """F, the inner width of the feed-forward network."""
    num_layers: PositiveInt
    """N, the number of blocks."""
    activation: Activation = "gelu_tanh"
    """The feed-forward nonlinearity; `gelu` is the exact form, `gelu_tanh` GPT-2's."""
    norm_epsilon: PositiveFloat = 1e-5
    """Added inside the square root of a norm."""
    dropout_rate: Probability = 0.0
    """Probability that a unit is dropped, at every dropout of the model."""
    attention_dropout: bool = True
    """Whether attention weights are dropped too, as in GPT-2; the paper of 2017 does not say so."""
    attention: AttentionImplementation = "auto"
    """How attention is computed, always the same function: `plain` by arrays of all scores,
    `query_blocks` by half of them under a causal mask, `flash` by cuDNN on GPUs in bfloat16,
    `blockwise` with memory linear in the length, or what is fastest.
    """
    initializer: Initializer = "normal"
    """Initial kernels: N(0, init-std²) as in GPT-2, or Xavier's uniform by fan-in and fan-out."""
    init_std: NonNegativeFloat = 0.02
    """Standard deviation of the initial weights; of the embeddings alone under Xavier."""
    dtype: DType = "float32"
    """Type of activations and matrix products, the name of a policy of `PRECISIONS`: of bfloat16,
    parameters, softmax, norms and loss are float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of keeping it: nothing, all of each block but
    the results of its matrix products with parameters (`dots`), or all of each block (`full`)."""
    scan_layers: bool = False
    """Whether training runs the blocks as one loop over stacked parameters: the same function, in a
    time of compilation that does not grow with their number, but slower on CPUs."""

    if TYPE_CHECKING:  # fields of one model are properties of another

        @property
        def num_kv_heads(self) -> int:
            """G, the number of key-value heads."""

        @property
        def head_width(self) -> int:
            """K, the width of a head."""

        @property
        def use_bias(self) -> bool:
            """Whether a projection has a bias if its layer does not say so."""

    @property
    def precision(self) -> Precision:
        """The types of parameters, activations, logits and reductions."""
        return PRECISIONS[self.dtype]

    @property
    def param_dtype(self) -> str:
        """Type the parameters are kept in."""
        return self.precision.params

    @property
    def residual_init_std(self) -> float:
        """Initial standard deviation of projections into the residual stream: std / sqrt(2N)."""
        return self.init_std / math.sqrt(2 * self.num_layers)

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        if self.attention not in ("auto", "plain"):
            self._check_attention()

    def _check_attention(self) -> None:
        """Refuse what the implementation by this name cannot compute on any device."""
        name = f"model.attention {self.attention}"
        if self.attention_dropout and self.dropout_rate > 0.0:
            raise UserError(
                f"{name} cannot drop attention weights: choose --model.no-attention-dropout or "
                "--model.attention auto"
            )
        if self.attention == "flash" and self.dtype != "bfloat16":
            raise UserError(f"{name} needs --model.dtype bfloat16, not {self.dtype}")
        if self.attention == "flash" and (self.head_width % 8 or self.head_width > 256):
            raise UserError(
                f"{name} needs a head width that is a multiple of 8 and at most 256, not "
                f"{self.head_width}: choose another --model.num-heads or --model.attention auto"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig(LayerConfig):
    """What a block of 2017 needs to know, which is also GPT's and BERT's."""

    num_heads: PositiveInt
    """H, the number of query heads; the head width is K = D / H."""
    activation: PlainActivation = "gelu_tanh"
    """The feed-forward nonlinearity; `gelu` is the exact form, `gelu_tanh` GPT-2's."""
    norm_placement: NormPlacement = "pre"
    """LayerNorm before each sub-layer (GPT-2) or after each residual sum (2017)."""
    use_bias: bool = True
    """Whether projections and LayerNorms have biases."""

    @property
    def num_kv_heads(self) -> int:
        """G = H."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """K = D / H."""
        return self.width // self.num_heads

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(
                f"model.width {self.width} is not divisible by model.num-heads {self.num_heads}: "
                "choose a width that is a multiple of the number of heads"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(LayerConfig):
    """A whole model: its layers, its vocabulary and its longest sequence."""

    vocab_size: NaturalInt
    """V, the number of tokens; 0 in a training config stands for the tokenizer's number."""
    context_length: PositiveInt
    """T, the longest sequence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig, ModelConfig):
    """GPT: a causal decoder-only Transformer (Radford et al. 2019, section 2.3)."""

    context_length: PositiveInt
    """T, the longest sequence; one learned position each."""


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
        vocab_size=64, context_length=17, width=32, num_heads=4, mlp_width=128, num_layers=2
    ),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 16, 24),
    "gpt2-large": _gpt2(1280, 20, 36),
    "gpt2-xl": _gpt2(1600, 25, 48),
}
"""Named GPT sizes: `toy` for tests and lessons, the rest as published (124M to 1.56B)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig, ModelConfig):
    """The encoder-decoder Transformer (Vaswani et al. 2017); N blocks on either side."""

    vocab_size: NaturalInt
    """V, the number of tokens of source and target; 0 in a training config stands for the
    tokenizer's number with the start, end and padding tokens."""
    context_length: PositiveInt
    """T, the longest source and the longest target."""
    share_embeddings: bool = True
    """One matrix for source, target and output (section 3.4), or one each."""
    activation: PlainActivation = "relu"
    norm_placement: NormPlacement = "post"
    attention_dropout: bool = False
    initializer: Initializer = "xavier"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise UserError(
                f"model.width {self.width} is odd: sinusoidal positions need an even width"
            )


def _transformer(
    width: int, num_heads: int, mlp_width: int, dropout_rate: float
) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=37_000,
        context_length=1024,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        num_layers=6,
        dropout_rate=dropout_rate,
        init_std=width**-0.5,
    )


TRANSFORMER_PRESETS: Mapping[str, TransformerConfig] = {
    "toy": TransformerConfig(
        vocab_size=64,
        context_length=17,
        width=32,
        num_heads=4,
        mlp_width=64,
        num_layers=2,
        init_std=32**-0.5,
    ),
    "small": TransformerConfig(
        vocab_size=8000,
        context_length=256,
        width=256,
        num_heads=4,
        mlp_width=1024,
        num_layers=3,
        dropout_rate=0.1,
        init_std=256**-0.5,
    ),
    "base": _transformer(512, 8, 2048, 0.1),
    "big": _transformer(1024, 16, 4096, 0.3),
}
"""Named Transformer sizes: `toy` for tests, `small` for small machines, `base` and `big` as
published (table 3, rows `base` and `big`, with the 37,000 tokens of English-German)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(BlockConfig, ModelConfig):
    """BERT with its masked-language-model head (Devlin et al. 2019)."""

    vocab_size: NaturalInt
    """V, the number of tokens; 0 in a training config stands for the tokenizer's number with the
    mask token."""
    context_length: PositiveInt
    """T, the longest sequence; one learned position each."""
    num_segments: PositiveInt = 2
    """Kinds of segments (`token_type`), one learned vector each."""
    activation: PlainActivation = "gelu"
    norm_placement: NormPlacement = "post"
    norm_epsilon: PositiveFloat = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_placement != "post":
            raise UserError("model.norm-placement of BERT is post: choose a GPT for pre")

    @property
    def residual_init_std(self) -> float:
        """Projections into the residual stream start like all others."""
        return self.init_std


def _bert(width: int, num_heads: int, num_layers: int) -> BertConfig:
    return BertConfig(
        vocab_size=30_522,
        context_length=512,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        num_layers=num_layers,
        dropout_rate=0.1,
    )


BERT_PRESETS: Mapping[str, BertConfig] = {
    "toy": BertConfig(
        vocab_size=64, context_length=17, width=32, num_heads=4, mlp_width=64, num_layers=2
    ),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 16, 24),
}
"""Named BERT sizes, uncased as published."""
