"""Rotary positions (Su et al. 2021), in halves: number i of a head turns with number i + K/2.

Pair i of a head of width K at position p turns by the angle p f_i, f_i = theta^(-2i/K); for longer
texts f is scaled: linear (Chen et al. 2023), ntk (bloc97 2023), yarn (Peng et al. 2023, section
3.2) or llama3 (https://github.com/meta-llama/llama-models).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchref.config import DecoderConfig


class Rotation(NamedTuple):
    """By which the pairs of each head turn at each position."""

    cos_BLk: Tensor
    sin_BLk: Tensor


def rotation(positions: Tensor, config: DecoderConfig) -> Rotation:
    """The cosines and sines of p f_i at these positions, times the scaling's attention factor."""
    wide = torch.promote_types(getattr(torch, config.dtype), torch.float32)
    frequencies_k = rotary_frequencies(config).to(wide)
    angles_BLk = positions[..., None].to(wide) * frequencies_k
    factor = attention_factor(config)
    return Rotation(factor * torch.cos(angles_BLk), factor * torch.sin(angles_BLk))


def rotate(x_BLHK: Tensor, rotation: Rotation) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) of the two halves of each head."""
    cos, sin = rotation.cos_BLk[:, :, None], rotation.sin_BLk[:, :, None]
    a, b = x_BLHK.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_BLHK.dtype)


def rotary_frequencies(config: DecoderConfig) -> Tensor:
    """f_i of each pair, scaled, in float64."""
    return SCALINGS[config.rope_scaling.kind](config)


def attention_factor(config: DecoderConfig) -> float:
    """What queries and keys are multiplied by: 1 but for YaRN."""
    scaling = config.rope_scaling
    if scaling.kind != "yarn":
        return 1.0
    given = scaling.attention_factor
    return 1.0 + 0.1 * math.log(scaling.factor) if given is None else given


def plain_frequencies(config: DecoderConfig) -> Tensor:
    """theta^(-2i/K)."""
    return _powers(config.rope_base, config.head_width)


def linear_frequencies(config: DecoderConfig) -> Tensor:
    """f / s."""
    return plain_frequencies(config) / config.rope_scaling.factor


def ntk_frequencies(config: DecoderConfig) -> Tensor:
    """The powers of theta (s T / T0 - s + 1)^(K / (K - 2)), of theta itself up to T0."""
    scaling, K = config.rope_scaling, config.head_width
    length = max(config.context_length, scaling.original_context_length)
    stretch = scaling.factor * length / scaling.original_context_length - (scaling.factor - 1)
    return _powers(config.rope_base * stretch ** (K / (K - 2)), K)


def yarn_frequencies(config: DecoderConfig) -> Tensor:
    """A blend of f and f / s, linear over i between the pairs that turn beta_fast and beta_slow
    times in T0 tokens."""
    scaling, K = config.rope_scaling, config.head_width

    def place(turns: float) -> float:
        angle = scaling.original_context_length / (2 * math.pi * turns)
        return K * math.log(angle) / (2 * math.log(config.rope_base))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, K - 1)
    ramp = (torch.arange(K // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    slowness, f = ramp.clamp(0, 1), plain_frequencies(config)
    return f * (1 - slowness) + f / scaling.factor * slowness


def llama3_frequencies(config: DecoderConfig) -> Tensor:
    """f for short wavelengths, f / s for long ones, between them a blend."""
    scaling, f = config.rope_scaling, plain_frequencies(config)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelengths = 2 * math.pi / f
    quickness = (scaling.original_context_length / wavelengths - low) / (high - low)
    blend = (1 - quickness) * f / scaling.factor + quickness * f
    slow = wavelengths > scaling.original_context_length / low
    fast = wavelengths < scaling.original_context_length / high
    return torch.where(fast, f, torch.where(slow, f / scaling.factor, blend))


SCALINGS = {
    "none": plain_frequencies,
    "linear": linear_frequencies,
    "ntk": ntk_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}


def _powers(base: float, width: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
