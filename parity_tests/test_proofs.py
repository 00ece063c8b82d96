"""What `jaxformer parity` proves is proven here too: every subject of the report, on its cases.

Here in float64, in the full counts in float32 as well. Left out are the long ones, which the tests
of training and of resume run on smaller models.
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
