"""Every default of jaxformer: frozen configurations and named presets. Imports nothing heavy.

The dimension key, used for the same thing in code, docstrings, shape annotations and einsums:

    B batch            L query length     M key length       D model width
    H query heads      G key-value heads  K head width       F feed-forward width
    N layers           V vocabulary       T context length   S slots of a cache
"""

from jaxformer.config.checks import require_positive
from jaxformer.config.data import (
    CopyConfig,
    DataConfig,
    MaskedDataConfig,
    NumbersConfig,
    TextPairsConfig,
)
from jaxformer.config.decoder import DECODER_PRESETS, DecoderConfig, RopeScaling
from jaxformer.config.decoding import BeamConfig, SamplingConfig
from jaxformer.config.models import (
    BERT_PRESETS,
    GPT_PRESETS,
    TRANSFORMER_PRESETS,
    Activation,
    AttentionImplementation,
    BertConfig,
    BlockConfig,
    GPTConfig,
    Initializer,
    LayerConfig,
    ModelConfig,
    NormPlacement,
    Remat,
    TransformerConfig,
)
from jaxformer.config.precision import PRECISIONS, DType, Precision
from jaxformer.config.training import (
    RUN_CONFIGS,
    CheckpointConfig,
    CopyTranslationConfig,
    DecoderLanguageConfig,
    DistributedConfig,
    LanguageConfig,
    LossKind,
    MaskedLanguageConfig,
    MeshConfig,
    NoamConfig,
    NumbersTranslationConfig,
    OptimizerConfig,
    RunConfig,
    RunOptions,
    SpikeConfig,
    TextConfig,
    TextRunConfig,
    TextTranslationConfig,
    TranslationConfig,
)

__all__ = [
    "BERT_PRESETS",
    "DECODER_PRESETS",
    "GPT_PRESETS",
    "PRECISIONS",
    "RUN_CONFIGS",
    "TRANSFORMER_PRESETS",
    "Activation",
    "AttentionImplementation",
    "BeamConfig",
    "BertConfig",
    "BlockConfig",
    "CheckpointConfig",
    "CopyConfig",
    "CopyTranslationConfig",
    "DType",
    "DataConfig",
    "DecoderConfig",
    "DecoderLanguageConfig",
    "DistributedConfig",
    "GPTConfig",
    "Initializer",
    "LanguageConfig",
    "LayerConfig",
    "LossKind",
    "MaskedDataConfig",
    "MaskedLanguageConfig",
    "MeshConfig",
    "ModelConfig",
    "NoamConfig",
    "NormPlacement",
    "NumbersConfig",
    "NumbersTranslationConfig",
    "OptimizerConfig",
    "Precision",
    "Remat",
    "RopeScaling",
    "RunConfig",
    "RunOptions",
    "SamplingConfig",
    "SpikeConfig",
    "TextConfig",
    "TextPairsConfig",
    "TextRunConfig",
    "TextTranslationConfig",
    "TransformerConfig",
    "TranslationConfig",
    "require_positive",
]
