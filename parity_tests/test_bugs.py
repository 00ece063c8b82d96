"""Every planted bug is caught by its proof, and blamed on the layer it was planted in."""

import pytest

from jaxformer.parity.engine.mutation import Bug, MutantResult, run_mutant
from jaxformer.parity.report import BUGS
from jaxformer.porting.locate import Comparison


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_caught_and_named(bug):
    assert run_mutant(bug) == MutantResult(bug.name, bug.layer, caught=True, named=bug.layer)


def test_bugs_have_names_of_their_own():
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_proof_that_fails_without_the_bug_catches_nothing():
    bug = BUGS[0]._replace(proof=lambda case: Comparison([], None))
    assert not run_mutant(bug).caught


def test_no_bug_stays_behind():
    bug = next(bug for bug in BUGS if bug.layer == "optimizer")
    assert isinstance(bug, Bug)
    run_mutant(bug)
    assert bug.proof(bug.case).ok
