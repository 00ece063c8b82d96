"""Every planted bug is caught by its proof, and its layer is named.

The first bug of each proof is in the quick set, the others are in the full counts; `jaxformer
parity` plants them all.
"""

import pytest

from jaxformer.parity import report
from jaxformer.parity.engine.comparison import Comparison
from jaxformer.parity.engine.mutation import Bug, MutantResult, run_mutant

BUGS = report.bugs_of(report.BUGS)
FIRST = {bug.proof: bug for bug in reversed(BUGS)}.values()


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=bug.name, marks=[] if bug in FIRST else [pytest.mark.slow])
        for bug in BUGS
    ],
)
def test_bug_is_caught_and_named(bug):
    assert run_mutant(bug) == MutantResult(bug.name, bug.layer, caught=True, named=bug.layer)


def test_no_two_bugs_have_the_same_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_proof_that_fails_without_the_bug_catches_nothing():
    bug = BUGS[0]._replace(proof=lambda case: Comparison([], None))
    assert not run_mutant(bug).caught


def test_no_bug_stays_in_the_code():
    bug = next(bug for bug in BUGS if bug.layer == "optimizer")
    assert isinstance(bug, Bug)
    run_mutant(bug)
    assert bug.proof(bug.case).ok
