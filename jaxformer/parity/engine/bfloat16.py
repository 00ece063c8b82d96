"""bfloat16, where both sides are measured against the float64 truth.

Eight bits leave errors of half a percent, and in a small tensor chance decides which side's error
is larger. Errors are therefore pooled by their root mean square, over seeds, over the values of a
layer and over equal layers, before JAX's is compared with PyTorch's.
"""

import dataclasses
import re
from collections import defaultdict

import numpy as np

from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.porting.compare import Row

SEEDS = 8


def prove_pooled(proof: Proof, case: Case, seeds: int = SEEDS) -> Comparison:
    """A row for each layer and quantity of a proof, pooled over cases of several seeds."""
    errors: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for seed in range(case.seed, case.seed + seeds):
        for row in proof(dataclasses.replace(case, seed=seed, jit=False)).rows:
            assert row.bound is not None
            layer = re.sub(r"\d+", "*", row.layer)  # all blocks together
            errors[row.model, layer, row.quantity].append((row.error, row.bound))
    rows = []
    for (model, layer, quantity), pairs in errors.items():
        error, bound = np.sqrt(np.square(pairs).mean(axis=0)).tolist()
        path = f"{len(pairs)} values"
        rows.append(Row(model, layer, quantity, path, "bfloat16", error, bound, error <= bound))
    return Comparison.of(rows)
