"""bfloat16, judged against the float64 truth.

Eight bits leave errors of half a percent, and in a small tensor chance decides which side's is the
larger. Errors are therefore pooled, over seeds and over the values of a layer, by their root mean
square, before JAX's is compared with PyTorch's.
"""

import dataclasses
from collections import defaultdict

import numpy as np

from jaxformer.parity.cases import Case
from jaxformer.parity.compare import Row
from jaxformer.parity.divergence import Comparison
from jaxformer.parity.twins import Proof

SEEDS = 16


def prove_pooled(proof: Proof, case: Case, seeds: int = SEEDS) -> Comparison:
    """A row for each layer and quantity of a proof, from cases of as many seeds."""
    errors: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for seed in range(case.seed, case.seed + seeds):
        for row in proof(dataclasses.replace(case, seed=seed, jit=False)).rows:
            assert row.bound is not None
            errors[row.model, row.layer, row.quantity].append((row.error, row.bound))
    rows = []
    for key, pairs in errors.items():
        error, bound = np.sqrt(np.square(pairs).mean(axis=0)).tolist()
        rows.append(Row(*key, f"{len(pairs)} values", "bfloat16", error, bound, error <= bound))
    return Comparison.of(rows)
