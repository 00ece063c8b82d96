"""The number types of a model: one policy per `dtype`."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

DType = Literal["float32", "bfloat16", "float64"]


class Precision(NamedTuple):
    """Which numbers of a model have which type (Micikevicius et al. 2018, sections 3.1 and 3.3)."""

    params: str
    """Parameters, their gradients and the optimizer's state."""
    compute: str
    """Activations and the operands of matrix products; embeddings and kernels are cast to it."""
    output: str
    """Logits."""
    reductions: str
    """Sums inside matrix products, softmax, norms, and the loss with all that is averaged."""


PRECISIONS: Mapping[DType, Precision] = {
    "float32": Precision("float32", "float32", "float32", "float32"),
    "bfloat16": Precision("float32", "bfloat16", "bfloat16", "float32"),
    "float64": Precision("float64", "float64", "float64", "float64"),
}
"""bfloat16 has the range of float32, so that its losses need no scaling."""
