"""Floating-point operations that a model needs for a batch: 6 per multiplied weight and token.

Two in the forward pass, four in the backward pass, and 12 K for each pair of a query and a key of
a head, whether a mask hides it or not (Chowdhery et al. 2022, PaLM, appendix B). Tables are looked
up, not multiplied; norms, biases and softmax are not counted, nor what rematerialisation repeats.
"""

import functools
from collections.abc import Callable, Mapping

from flax import nnx

from jaxformer.config import ModelConfig
from jaxformer.models.functional import abstract_model, flat_params
from jaxformer.models.stacked import unstack_layers


def training_flops(
    model: type[nnx.Module], config: ModelConfig, rows: int, tokens_through: Callable[[str], int]
) -> float:
    """rows (6 sum over kernels of size x tokens + 12 sum over attentions of HK x queries x keys).

    `tokens_through` says how many tokens of a row pass the kernel at a path. The logits of a model
    without an output kernel come from the embedding.
    """
    kernels = _kernels(model, config)
    products = sum(inner * outer * tokens_through(path) for path, (inner, outer) in kernels.items())
    pairs = sum(
        width * tokens_through(path) * tokens_through(path.replace("/query/", "/key/"))
        for path, (_, width) in kernels.items()
        if path.endswith("/query/kernel")
    )
    return rows * (6.0 * products + 12.0 * pairs)


@functools.cache
def _kernels(model: type[nnx.Module], config: ModelConfig) -> Mapping[str, tuple[int, int]]:
    """The shape of every matrix that tokens are multiplied with, by its path."""
    params = unstack_layers(abstract_model(model, config)[1])
    shapes = {path: leaf.shape for path, leaf in flat_params(params).items()}
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("kernel")}
    if "output/kernel" not in kernels:
        kernels["embed/embedding"] = shapes["embed/embedding"]
    return kernels
