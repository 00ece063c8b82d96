"""Optimizers and their schedules."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, decay and clipping, or Muon."""

    peak_learning_rate: float = 1e-3
    floor_learning_rate: float = 1e-4
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    kernels: str = "adamw"
    momentum: float = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoamConfig:
    """Adam with the schedule of 2017: warm-up, then the inverse root."""

    factor: float = 1.0
    warmup_steps: int = 4000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    clip_norm: float | None = None
