"""Compare any JAX model with any PyTorch model, module by module; imports torch, not torchref."""

from jaxformer.porting.compare import Row, relative_error
from jaxformer.porting.locate import Divergence, first_divergence

__all__ = ["Divergence", "Row", "first_divergence", "relative_error"]
