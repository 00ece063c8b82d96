"""Every bound of the proofs, in one table that no test loosens.

The error they bound is `jaxformer.porting.compare.relative_error`. Where a test needs another
measure than the table has, it is declared here with its reason.
"""

from collections.abc import Mapping
from typing import Literal

from jaxformer.porting.compare import DType

Scope = Literal["layer", "model", "state", "tokens"]

BOUNDS: Mapping[tuple[Scope, DType], float | None] = {
    ("layer", "float64"): 1e-13,
    ("layer", "float32"): 3e-6,
    ("model", "float64"): 1e-12,
    ("model", "float32"): 2e-5,
    ("state", "float64"): 1e-9,
    ("state", "float32"): None,
    ("tokens", "float64"): 0.0,
    ("tokens", "float32"): None,
}
"""`layer` is one layer and its gradients, `model` a whole model and its gradients, `state` the
parameters, moments and losses after up to 100 optimizer steps with dropout on, `tokens` decoded
tokens. None is reported without a verdict: in float32, rounding alone changes the path of an
optimizer and may decide between two nearly equal logits. What must be equal bit for bit has the
bound 0."""

BFLOAT16_RATIO = 1.25
"""In bfloat16 both sides are measured against the float64 truth: JAX's error may be at most this
times PyTorch's."""

SMALL_MODEL_STATE = 1e-11
"""`state` in float64 for the small models of the tests, where few operations amplify rounding. The
table's 1e-9 leaves room for larger models; 1e-11 shows that it is not met by chance."""

UNITS_IN_LAST_PLACE = 4
"""Entry by entry instead of normwise, times the type's epsilon: for functions of one or two
operations, and for what must be 1 or a mean up to the rounding of its sum."""

FLOAT32_LOSSES = 2e-6
"""Absolute, for losses near 4 of 20 steps in float32: another mesh sums in another order, which
costs a few units in the last place of 5e-7 each."""

FLOAT32_STATE = 1e-4
"""Parameters and moments after 5 steps in float32 on different meshes: Adam divides rounding by
rounding where a gradient is nearly zero."""
