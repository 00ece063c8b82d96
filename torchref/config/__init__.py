"""The configs of models, optimizers and decoding, with the same fields as in jaxformer/config.

The dimension key:  B batch  L query length  M key length  D model width  H query heads
G key-value heads  K head width  F feed-forward width  N layers  V vocabulary
"""

from torchref.config.decoder import DecoderConfig, RopeScaling
from torchref.config.decoding import BeamConfig, SamplingConfig
from torchref.config.models import (
    BertConfig,
    BlockConfig,
    GPTConfig,
    LayerConfig,
    TransformerConfig,
)
from torchref.config.training import NoamConfig, OptimizerConfig

__all__ = [
    "BeamConfig",
    "BertConfig",
    "BlockConfig",
    "DecoderConfig",
    "GPTConfig",
    "LayerConfig",
    "NoamConfig",
    "OptimizerConfig",
    "RopeScaling",
    "SamplingConfig",
    "TransformerConfig",
]
