"""The former home of `jaxformer.porting.first_divergence`, kept for one release."""

from jaxformer.porting import Divergence, first_divergence

__all__ = ["Divergence", "first_divergence"]
