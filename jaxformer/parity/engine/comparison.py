"""What a proof is and what it finds."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxformer.parity.bounds import BOUNDS, Scope
from jaxformer.parity.engine.cases import Case
from jaxformer.porting.compare import Row, Values, all_ok, compare


class Comparison(NamedTuple):
    """All that a proof measured, and the layer at fault if something is out of bounds."""

    rows: list[Row]
    layer: str | None

    @classmethod
    def of(cls, rows: list[Row]) -> "Comparison":
        """The layer at fault is that of the first row out of bounds."""
        return cls(rows, next((row.layer for row in rows if not row.ok), None))

    @property
    def ok(self) -> bool:
        """Whether something was measured and all of it is in bounds."""
        return all_ok(self.rows)


Proof = Callable[[Case], Comparison]
"""A proof measures one subject on one case."""


def compare_values(
    ours: Values, theirs: Values, case: Case, scope: Scope, model: str
) -> Comparison:
    """Both sides' values, under the bound of a scope in the type of the case."""
    return Comparison.of(compare(ours, theirs, BOUNDS[scope, case.dtype], case.dtype, model))


def late(look_up: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The function that `look_up` returns, looked up again at every call.

    A planted bug replaces an attribute of a module while a proof runs (mutation testing). A proof
    that stores `loss.cross_entropy` itself, in a table or as an argument, keeps the function from
    before and misses the bug; `late(lambda: loss.cross_entropy)` calls the planted one.
    """
    return lambda *arguments: look_up()(*arguments)
