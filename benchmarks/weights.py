"""The same weights for every side, drawn by name in each process: no file, no framework's seed.

All are uniform with a standard deviation of 0.02, scales around 1, so that a side that leaves out
a bias computes another loss. Uniform numbers are drawn several times as fast as normal ones.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxformer.config import GPTConfig, ModelConfig, TransformerConfig
from jaxformer.models.functional import abstract_model, leaf_path
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.weights.convert import Table, to_torch

MODELS: dict[str, tuple[type[ModelConfig], Any]] = {
    "gpt": (GPTConfig, GPT),
    "transformer": (TransformerConfig, Transformer),
}
"""By the names that the settings of a side have: the config and the model."""


def draw(kind: str, config: ModelConfig, std: float = 0.02) -> PyTree[np.ndarray]:
    """Parameters in float32."""

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = leaf_path(path)
        values = np.random.default_rng([*name.encode()]).random(shape.shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32(12**0.5 * std)
        return values + np.float32(1) if name.endswith("scale") else values

    _, shapes = abstract_model(MODELS[kind][1], config)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def tensors(kind: str, config: ModelConfig, table: Table) -> dict[str, np.ndarray]:
    """The same parameters under the names of a PyTorch model."""
    return to_torch(draw(kind, config), table)


def tokens(config: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    """Random tokens, the last three of the vocabulary left out, which may be special."""
    return np.random.default_rng(seed).integers(0, config.vocab_size - 3, shape)
