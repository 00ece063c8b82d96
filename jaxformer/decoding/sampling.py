"""Sampling the next token from its logits: greedy, temperature, top-k, top-p, min-p, repetition.

Each filter maps logits (B, V) to logits, -inf where a token is excluded; `select_token` applies
them in the order of `SamplingConfig`: penalty, temperature, top-k, top-p, min-p. Logits are float32
or wider. Every filter keeps at least the likeliest token. Ties:

    top_k    keeps every token as likely as the k-th, so perhaps more than k
    top_p    excludes the lower token ids first
    min_p    keeps or excludes equal tokens together
    argmax   takes the lowest token id

Samples are drawn by the Gumbel-max trick (Gumbel 1954): argmax(logits + g), with standard Gumbel
noise g, is a sample of softmax(logits). Two programs with the same noise sample the same token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import SamplingConfig


def repetition_penalty(
    logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Logits of seen tokens divided by the penalty if positive, multiplied by it if negative.

    CTRL, Keskar et al. 2019, section 4.1; the sign rule is that of Hugging Face transformers.
    """
    weakened = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, weakened, logits_BV)


def top_k(logits_BV: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The k likeliest tokens (Fan et al. 2018, section 5.4)."""
    kept, _ = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))
    return jnp.where(logits_BV < kept[:, -1:], -jnp.inf, logits_BV)


def top_p(logits_BV: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The fewest tokens, likeliest first, whose probabilities sum to p (Holtzman et al. 2020).

    Equivalently, tokens are excluded, unlikeliest first, while the probabilities of the excluded
    ones sum to at most 1 - p.
    """
    order_BV = jnp.argsort(logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    out_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) <= 1 - p
    out_BV = out_BV.at[:, -1].set(False)
    out_BV = jnp.put_along_axis(out_BV, order_BV, out_BV, axis=-1, inplace=False)
    return jnp.where(out_BV, -jnp.inf, logits_BV)


def min_p(logits_BV: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Tokens at least p times as probable as the likeliest (Nguyen et al. 2024, section 3)."""
    probabilities = jax.nn.softmax(logits_BV, axis=-1)
    least = p * probabilities.max(axis=-1, keepdims=True)
    return jnp.where(probabilities < least, -jnp.inf, logits_BV)


def filter_logits(
    logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], config: SamplingConfig
) -> Float[Array, "B V"]:
    """All filters of the config; at temperature 0 only the repetition penalty applies."""
    if config.repetition_penalty != 1.0:
        logits_BV = repetition_penalty(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / config.temperature
    if config.top_k is not None:
        logits_BV = top_k(logits_BV, config.top_k)
    if config.top_p is not None:
        logits_BV = top_p(logits_BV, config.top_p)
    if config.min_p is not None:
        logits_BV = min_p(logits_BV, config.min_p)
    return logits_BV


def greedy(logits_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The likeliest token."""
    return jnp.argmax(logits_BV, axis=-1)


def sample(logits_BV: Float[Array, "B V"], noise_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    """A sample of softmax(logits), given standard Gumbel noise."""
    return jnp.argmax(logits_BV + noise_BV, axis=-1)


def gumbel_noise(
    keys_B: Key[Array, " B"], steps: Int[Array, "..."] | int, like_BV: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    """Noise of the logits' type for one step, or a step per row: that of fold_in(key, step)."""

    def row(key: Key[Array, ""], step: Int[Array, ""]) -> Float[Array, " V"]:
        return jax.random.gumbel(jax.random.fold_in(key, step), like_BV.shape[-1:], like_BV.dtype)

    return jax.vmap(row)(keys_B, jnp.broadcast_to(steps, keys_B.shape))


def select_token(
    logits_BV: Float[Array, "B V"],
    seen_BV: Bool[Array, "B V"],
    config: SamplingConfig,
    noise_BV: Float[Array, "B V"],
) -> Int[Array, " B"]:
    """The next token by the config: greedy at temperature 0, else a sample.

    Args:
        logits_BV: of the next token, float32 or wider.
        seen_BV: True at the tokens of a row's text, for the repetition penalty.
        config: the filters.
        noise_BV: standard Gumbel noise; not used at temperature 0.
    """
    filtered_BV = filter_logits(logits_BV, seen_BV, config)
    return greedy(filtered_BV) if config.temperature == 0 else sample(filtered_BV, noise_BV)
