"""Encoder and decoder stacks of N blocks (Vaswani et al. 2017, section 3.1).

Post-LN blocks end with their own norm; pre-LN blocks leave the sum unnormalised, so a pre-LN stack
ends with one more (Xiong et al. 2020, section 3.1).
"""

from torch import Tensor, nn

from torchref.config import BlockConfig
from torchref.layers.blocks import DecoderBlock, EncoderBlock
from torchref.layers.dropout import Keep, fold_path
from torchref.layers.norms import LayerNorm


class Encoder(nn.Module):
    """N encoder blocks, one after the other."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.blocks = nn.ModuleList([EncoderBlock(config) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, mask, fold_path(keep, "blocks", i))
        return x_BLD if self.norm is None else self.norm(x_BLD)


class Decoder(nn.Module):
    """N decoder blocks, each attending to the encoder's output."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.blocks = nn.ModuleList([DecoderBlock(config) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, memory_BMD, mask, memory_mask, fold_path(keep, "blocks", i))
        return x_BLD if self.norm is None else self.norm(x_BLD)
