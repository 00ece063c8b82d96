"""The former home of `jaxformer.porting.locate`, kept for one release."""

from jaxformer.porting.locate import Comparison, Divergence, first_divergence

__all__ = ["Comparison", "Divergence", "first_divergence"]
