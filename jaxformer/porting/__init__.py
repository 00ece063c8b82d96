"""Compare any JAX model with any PyTorch model, module by module; imports torch, not torchref."""

from jaxformer.porting.compare import Row, relative_error
from jaxformer.porting.comparison import assert_layer, assert_port, divergence
from jaxformer.porting.findings import Fault, Layer
from jaxformer.porting.locate import Divergence, first_divergence
from jaxformer.porting.report import Report

__all__ = [
    "Divergence",
    "Fault",
    "Layer",
    "Report",
    "Row",
    "assert_layer",
    "assert_port",
    "divergence",
    "first_divergence",
    "relative_error",
]
