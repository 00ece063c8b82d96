"""Every proof of `jaxformer parity`, on its cases: in float64, in the full counts in float32 too.

The long ones are left out: the tests of training and of resume run them on smaller models.
"""

import pytest

from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.report import MODELS

LONG = ("prove_training", "prove_resume")
PROOFS = [
    pytest.param(
        proof,
        case,
        id=f"{model}-{dtype}-{proof.__name__.removeprefix('prove_')}-{place}",
        marks=[pytest.mark.slow] if dtype == "float32" else [],
    )
    for model, subjects in MODELS.items()
    for dtype in ("float64", "float32")
    for subject in subjects
    for place, (proof, case) in enumerate(subject(Case(TINY, dtype, jit=False)))
    if proof.__name__ not in LONG
]


@pytest.mark.parametrize(("proof", "case"), PROOFS)
def test_the_reports_proof_holds(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]
