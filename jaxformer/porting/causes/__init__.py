"""Why a port differs: faults are planted in PyTorch's module until it gives the port's output."""

from jaxformer.porting.causes.search import Cause, Context, name_cause

__all__ = ["Cause", "Context", "name_cause"]
