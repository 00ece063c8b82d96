"""AdamW as GPTs are trained with it, also beside Muon, and Adam as the Transformer of 2017 was."""

import torch
from torch import nn

from torchref.config import NoamConfig, OptimizerConfig
from torchref.training.muon import Muon


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """torch.optim.AdamW, decay on matrices only; `train_step` sets the rate before each update."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.peak_learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
    )


def muon(model: nn.Module, config: OptimizerConfig) -> Muon:
    """AdamW with Muon in its place for the kernels; `train_step` sets the rate."""
    return Muon(model, config)


def adam(model: nn.Module, config: NoamConfig) -> torch.optim.Adam:
    """torch.optim.Adam; `train_step` sets the rate before each update."""
    return torch.optim.Adam(
        model.parameters(), betas=(config.beta1, config.beta2), eps=config.epsilon
    )
