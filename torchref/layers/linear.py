"""Initial weights of the affine maps, which are torch.nn.Linear."""

from torch import nn

from torchref.config import LayerConfig


def init_linears(model: nn.Module, config: LayerConfig) -> None:
    """Draw the weights of every torch.nn.Linear in a model by its config; biases become zeros.

    N(0, init_std²), smaller into the residual stream (Radford et al. 2019, section 2.3), or
    Xavier's U(-a, a) with a = sqrt(6 / (fan-in + fan-out)) (Glorot & Bengio 2010, equation 16).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if config.initializer == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                residual = name.endswith((".out", ".down"))
                std = config.residual_init_std if residual else config.init_std
                nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
