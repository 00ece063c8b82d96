"""Muon: momentum whose singular values are brought near 1 (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon, with updates of AdamW's size (Liu et al. 2025, section
2.2). Equal to torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but for its bfloat16.
"""

import math

import torch
from torch import Tensor, nn

from torchref.config import OptimizerConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for the kernels, AdamW for embeddings, the output head and vectors."""

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self.config = config
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for name, p in model.named_parameters():
            decay = config.weight_decay if p.ndim >= 2 else 0.0
            groups.setdefault((is_kernel(name, p), decay), []).append(p)
        super().__init__(
            [
                {"params": params, "muon": muon, "weight_decay": decay}
                for (muon, decay), params in groups.items()
            ],
            {"lr": config.peak_learning_rate},
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            direction = self.muon_direction if group["muon"] else self.adam_direction
            for p in group["params"]:
                update = direction(p.grad, self.state[p]) + group["weight_decay"] * p
                p -= group["lr"] * update

    def muon_direction(self, g: Tensor, state: dict) -> Tensor:
        """m <- beta m + (1 - beta) g, then 0.2 sqrt(max(O, I)) times what is orthogonal."""
        momentum = self.config.momentum
        m = state.setdefault("momentum", torch.zeros_like(g)).lerp_(g, 1 - momentum)
        return RMS * math.sqrt(max(g.shape)) * orthogonalize(m.lerp(g, 1 - momentum))

    def adam_direction(self, g: Tensor, state: dict) -> Tensor:
        """m / (sqrt(v) + epsilon), with bias-corrected moments."""
        config = self.config
        t = state["step"] = state.get("step", 0) + 1
        m = state.setdefault("exp_avg", torch.zeros_like(g))
        v = state.setdefault("exp_avg_sq", torch.zeros_like(g))
        m.mul_(config.beta1).add_((1 - config.beta1) * g)
        v.mul_(config.beta2).add_((1 - config.beta2) * g**2)
        root = torch.sqrt(v / (1 - config.beta2**t))
        return m / (1 - config.beta1**t) / (root + config.epsilon)


def is_kernel(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between hidden states."""
    tables = {"embed", "positions", "output"}
    return parameter.ndim >= 2 and not tables & set(name.split("."))


def orthogonalize(m: Tensor) -> Tensor:
    """About U V^T of m = U S V^T, by iterating x <- a x + (b x x^T + c (x x^T)²) x (Newton-Schulz).

    The iteration is of the smaller of m's two sides.
    """
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if m.shape[0] > m.shape[1] else x
