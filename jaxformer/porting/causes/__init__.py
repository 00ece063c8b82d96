"""Why a port differs: faults are planted in PyTorch's module until it gives the port's output."""

from jaxformer.porting.causes.search import UNFIT, Cause, Context, Inputs, name_cause, name_stretch

__all__ = ["UNFIT", "Cause", "Context", "Inputs", "name_cause", "name_stretch"]
