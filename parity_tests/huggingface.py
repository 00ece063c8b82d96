"""Shared by the tests against transformers' models: random sizes, random weights, their arrays."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
import torch
from jaxtyping import PyTree

from jaxformer.models.functional import flat_params
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.weights.convert import Row, from_torch, to_torch


def draw_sizes(seed: int) -> dict[str, int]:
    """Sizes of a small model, different for each seed."""
    rng = np.random.default_rng(seed)
    sizes = {
        "vocab_size": rng.integers(20, 60),
        "context_length": rng.integers(9, 16),
        "width": rng.choice([16, 24, 32]),
        "num_heads": rng.choice([1, 2, 4]),
        "mlp_width": rng.integers(16, 70),
        "num_layers": rng.integers(1, 4),
    }
    return {name: int(size) for name, size in sizes.items()}


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """The model with noise on its parameters: no bias stays zero, no scale one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def tensors(model: torch.nn.Module, grads: bool = False) -> dict[str, np.ndarray]:
    """The parameters or their gradients; each tied parameter is named once."""
    return {
        name: (parameter.grad if grads else parameter).detach().numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_equal_gradients(found: PyTree, expected: PyTree, bound: float) -> None:
    """Every leaf in bounds, none missing on either side."""
    ours, theirs = flat_params(found), flat_params(expected)
    assert ours.keys() == theirs.keys()
    for path, grad in ours.items():
        assert relative_error(grad, theirs[path], path.endswith(ZERO_GRADIENT)) <= bound, path


def assert_reads_in_both_directions(
    model: torch.nn.Module, table: tuple[Row, ...], shapes: PyTree
) -> None:
    """To JAX and back to PyTorch is the same, bit for bit, also from the whole state_dict."""
    arrays = tensors(model)
    params = from_torch(arrays, table, shapes)
    jax.tree.map(
        np.testing.assert_array_equal, from_torch(model.state_dict(), table, shapes), params
    )
    back = to_torch(params, table)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """What transformers computes in float32 in a model of any type (norms, softmax, rotary
    positions), it computes in float64; and the frequencies of models that are built here."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch, "float32", torch.float64),
            mock.patch.object(torch, "float", torch.float64),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(default)
