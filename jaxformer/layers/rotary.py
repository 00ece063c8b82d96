"""Rotary positions (Su et al. 2021), in halves: number i of a head turns with number i + K/2.

This is the order in which Hugging Face keeps the kernels of queries and keys. Pair i of a head of
width K at position p turns by the angle p f_i, with the frequency f_i = theta^(-2i/K).

A text of more than the T0 tokens that a model was trained with turns pairs further than they ever
turned. Each kind of scaling by a factor s changes the frequencies against it:

linear   f / s for all: positions are squeezed into the trained ones (Chen et al. 2023)
ntk      a larger theta, theta (s T / T0 - s + 1)^(K / (K - 2)), for contexts T above T0: high
         frequencies stay (as "dynamic" in transformers for texts of T tokens; bloc97 2023)
yarn     f / s where less than beta_slow turns fit into T0, f where more than beta_fast do, between
         them a linear blend over i; queries and keys times 1 + ln(s) / 10 (Peng et al. 2023, 3.2)
llama3   f / s for wavelengths above T0 / low, f for those below T0 / high, between them a blend
         linear in T0 / wavelength (Llama 3.1, https://github.com/meta-llama/llama-models)
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxformer.config import DecoderConfig
from jaxformer.config.decoder import RopeScalingKind


class Rotation(NamedTuple):
    """By which the pairs of each head turn at each position, in float32 or wider."""

    cos_BLk: Float[Array, "B L k"]
    """k = K / 2."""
    sin_BLk: Float[Array, "B L k"]


def rotation(positions: Int[Array, "B L"], config: DecoderConfig) -> Rotation:
    """The cosines and sines of p f_i at these positions, times the scaling's attention factor."""
    wide = config.precision.reductions
    frequencies_k = jnp.asarray(rotary_frequencies(config), wide)
    angles_BLk = positions[..., None].astype(wide) * frequencies_k
    factor = attention_factor(config)
    return Rotation(factor * jnp.cos(angles_BLk), factor * jnp.sin(angles_BLk))


def rotate(x_BLHK: Float[Array, "B L H K"], rotation: Rotation) -> Float[Array, "B L H K"]:
    """(a, b) -> (a cos - b sin, b cos + a sin) of the two halves of each head."""
    cos, sin = rotation.cos_BLk[:, :, None], rotation.sin_BLk[:, :, None]
    a, b = jnp.split(x_BLHK.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BLHK.dtype)


def rotary_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """f_i of each pair, scaled, in float64."""
    return SCALINGS[config.rope_scaling.kind](config)


def attention_factor(config: DecoderConfig) -> float:
    """What queries and keys are multiplied by: 1 but for YaRN."""
    scaling = config.rope_scaling
    if scaling.kind != "yarn":
        return 1.0
    given = scaling.attention_factor
    return 1.0 + 0.1 * math.log(scaling.factor) if given is None else given


def plain_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """theta^(-2i/K)."""
    return _powers(config.rope_base, config.head_width)


def linear_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """f / s."""
    return plain_frequencies(config) / config.rope_scaling.factor


def ntk_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """The powers of theta (s T / T0 - s + 1)^(K / (K - 2)), of theta itself up to T0."""
    scaling, K = config.rope_scaling, config.head_width
    longer = max(config.context_length / scaling.original_context_length, 1.0)
    stretch = scaling.factor * longer - scaling.factor + 1.0
    return _powers(config.rope_base * stretch ** (K / (K - 2)), K)


def yarn_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """A blend of f and f / s, linear over i between the pairs that turn beta_fast and beta_slow
    times in T0 tokens."""
    scaling, K = config.rope_scaling, config.head_width

    def place(turns: float) -> float:
        """The i of the pair that turns so often in T0 tokens."""
        wavelength = scaling.original_context_length / turns
        return K * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_base))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, K - 1)
    slowness = np.clip((np.arange(K // 2) - low) / max(high - low, 0.001), 0, 1)
    f = plain_frequencies(config)
    return f * (1 - slowness) + f / scaling.factor * slowness


def llama3_frequencies(config: DecoderConfig) -> Float[np.ndarray, " k"]:
    """A blend of f and f / s, linear in the turns in T0 tokens between low and high."""
    scaling, f = config.rope_scaling, plain_frequencies(config)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context_length * f / (2 * math.pi)
    quickness = np.clip((turns - low) / (high - low), 0, 1)
    return f * quickness + f / scaling.factor * (1 - quickness)


SCALINGS: Mapping[RopeScalingKind, Callable[[DecoderConfig], Float[np.ndarray, " k"]]] = {
    "none": plain_frequencies,
    "linear": linear_frequencies,
    "ntk": ntk_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}


def _powers(base: float, width: int) -> Float[np.ndarray, " k"]:
    return base ** (-np.arange(0, width, 2) / width)
