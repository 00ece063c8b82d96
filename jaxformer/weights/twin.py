"""The twin rule: which leaf of jaxformer is which tensor of torchref, for every layer and model.

The twins' attributes have the same names, so four endings are enough: a kernel (in, out) is the
transposed `weight` of torch.nn.Linear, an embedding and a norm's scale are a `weight`, a bias is a
`bias`. The path before the ending is the same, with dots.
"""

from jaxformer.weights.convert import Row
from jaxformer.weights.transforms import Transpose


def beneath(ours: str, theirs: str) -> tuple[Row, ...]:
    """The rule for a module of different names on the two sides."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", (Transpose((1, 0)),)),
        Row(f"{ours}/embedding", f"{theirs}.weight"),
        Row(f"{ours}/scale", f"{theirs}.weight"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    )


TWIN = beneath("**", "**")
