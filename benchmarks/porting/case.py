"""A case: a PyTorch model, a port of it to JAX, their inputs, and the faults of the port.

A file of `ports/` has one family of models: the PyTorch model, the ports as different people write
them, and `CASES`. A port is built from PyTorch's weights by the file's own conversion, so that the
same port also exists with fresh weights, which nobody loaded.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch

FOLDERS = ("ports", "ports_blind")
Style = Literal["nnx", "linen", "function", "pytree"]
Weights = Mapping[str, np.ndarray]
"""PyTorch's state dict in numpy."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One independent fault of a port."""

    module: str
    """The innermost PyTorch module at fault, "" for the model itself. `*` and `?` stand for
    letters other than the dot, as in `layers.*.norm` of a fault that every layer has."""
    words: tuple[str, ...]
    """Causes that are right answers; the contract lists them (docs/porting.md)."""
    also: tuple[str, ...] = ()
    """Other right answers for the module: the one around it, or another name of it."""
    in_weights: bool = False
    """The fault is in the conversion, or is one of the order of a feature map that is flattened, so
    carrying the weights of PyTorch again removes it: in a port without weights no order is wrong.
    """

    def is_at(self, module: str) -> bool:
        """Whether a module is a right answer."""
        return any(_pattern(p).fullmatch(module) for p in (self.module, *self.also))


def _pattern(module: str) -> re.Pattern[str]:
    return re.compile(re.escape(module).replace(r"\*", "[^.]*").replace(r"\?", "[^.]"))


@dataclasses.dataclass(frozen=True)
class Case:
    """A port and what is wrong with it."""

    name: str
    style: Style
    torch: Callable[[], torch.nn.Module]
    """The PyTorch model, the same one in every call."""
    port: Callable[[Weights], Any]
    """The JAX side from a state dict: an NNX module, (Linen module, variables), (function,
    parameters) or a callable pytree."""
    inputs: Callable[[], Any]
    """Positional values in a tuple, keyword values in a dict, or of each side its own in
    `{"jax": ..., "torch": ...}`."""
    faults: tuple[Fault, ...] = ()
    float32: bool = False
    """One side, or the conversion, computes something in float32 whatever the parameters are."""
    carried: bool = True
    """Each leaf is made of tensors in a way that can be found; not so where the port has folded a
    normalisation into the layer before it."""

    def jax(self) -> Any:
        """The port with the weights that its own conversion gives it."""
        return self.port(weights(self.torch()))

    def fresh(self) -> Any:
        """The port with weights of its own, as of somebody who loaded nothing."""
        return self.port(weights(draw(self.torch(), seed=1)))


def draw(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw all parameters and running statistics; the model in eval mode.

    No bias is zero and no gain one, so that each of them has an effect.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float32)

    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim > 1:
                x.copy_(normal(x) / x[0].numel() ** 0.5)
            else:
                x.copy_(name.endswith("weight") + 0.3 * normal(x))
        for name, x in model.named_buffers():
            if name.endswith("running_mean"):
                x.copy_(0.3 * normal(x))
            elif name.endswith("running_var"):
                x.copy_((0.3 * normal(x)).exp())
    return model.eval()


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dict in numpy."""
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def load(folder: str) -> dict[str, list[Case]]:
    """The cases of a folder by family; none where the folder is missing."""
    try:
        package = importlib.import_module(f"benchmarks.porting.{folder}")
    except ModuleNotFoundError:
        return {}
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return {
        name: list(importlib.import_module(f"{package.__name__}.{name}").CASES) for name in names
    }
