"""The report: runs all proofs and all planted bugs, and tells what was measured."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from jaxformer.errors import UserError
from jaxformer.parity.bugs import beam as bugs_beam
from jaxformer.parity.bugs import bert as bugs_bert
from jaxformer.parity.bugs import decoding as bugs_decoding
from jaxformer.parity.bugs import model as bugs_model
from jaxformer.parity.bugs import training as bugs_training
from jaxformer.parity.bugs import transformer as bugs_transformer
from jaxformer.parity.bugs import translation as bugs_translation
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.mutation import MutantResult, run_mutant
from jaxformer.parity.engine.settings import described
from jaxformer.parity.engine.twins import Proof
from jaxformer.parity.proofs import (
    beam,
    bert,
    bert_training,
    decoding,
    gpt,
    layers,
    resume,
    training,
    transformer,
    translation_training,
)
from jaxformer.porting.compare import DType, Row, all_ok

Subject = Callable[[Case], list[tuple[Proof, Case]]]

MODELS: Mapping[str, tuple[Subject, ...]] = {
    "gpt": (layers.proofs, gpt.proofs, training.proofs, decoding.proofs, resume.proofs),
    "transformer": (
        layers.decoder_proofs,
        transformer.proofs,
        translation_training.proofs,
        beam.proofs,
    ),
    "bert": (bert.proofs, bert_training.proofs),
}
"""What is proven of each model: its layers, the whole, and all that is done with it.

Layers that several models are made of are proven under the first of them.
"""

BFLOAT16_SUBJECTS = (
    layers.proofs,
    gpt.proofs,
    layers.decoder_proofs,
    transformer.proofs,
    bert.proofs,
)
"""Subjects with a float64 truth to judge bfloat16 by; the path of an optimizer has none."""

BUGS = (
    *bugs_model.BUGS,
    *bugs_training.BUGS,
    *bugs_decoding.BUGS,
    *bugs_transformer.BUGS,
    *bugs_bert.BUGS,
    *bugs_translation.BUGS,
    *bugs_beam.BUGS,
)

WIDER = dataclasses.replace(TINY, vocab_size=32, context_length=12, width=32, mlp_width=64)
"""For bfloat16: errors of more numbers are less a matter of chance."""


class Report(NamedTuple):
    """All that was measured and found."""

    rows: list[Row]
    findings: list[MutantResult]
    settings: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether every row is in bounds and every planted bug was caught and named."""
        return all_ok(self.rows) and bool(self.findings) and all(f.ok for f in self.findings)


def run(model: str, dtypes: Iterable[DType], tell: Callable[[str], None]) -> Report:
    """Run every proof of a model (or `all`) in each type, then hunt the planted bugs.

    Args:
        model: a name in MODELS, or `all`.
        dtypes: the types.
        tell: is told what runs now.

    Raises:
        UserError: for a model that is not there.
    """
    if model != "all" and model not in MODELS:
        raise UserError(
            f"there is no {model} model to prove yet: choose {', '.join(MODELS)} or all"
        )
    models = MODELS if model == "all" else {model: MODELS[model]}
    rows = []
    for name, subjects in models.items():
        for dtype in dtypes:
            for proof, case in _proofs(subjects, dtype):
                tell(f"{name} {dtype} {proof.__name__.removeprefix('prove_')}")
                run_proof = prove_pooled if dtype == "bfloat16" else _once
                # Its layers count as the model's own.
                rows += [row._replace(model=name) for row in run_proof(proof, case).rows]
    findings = []
    for bug in BUGS:
        tell(f"planted bug: {bug.name}")
        findings.append(run_mutant(bug))
    return Report(rows, findings, described())


def _proofs(subjects: Iterable[Subject], dtype: DType) -> Iterator[tuple[Proof, Case]]:
    for subject in subjects:
        if dtype != "bfloat16":
            yield from subject(Case(TINY, dtype, jit=False))
        elif subject in BFLOAT16_SUBJECTS:
            yield from subject(Case(WIDER, dtype, length=12, jit=False))


def _once(proof: Proof, case: Case) -> Any:
    return proof(case)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON holds it; an infinite error (see `compare.relative_error`) is null."""

    def finite(number: float | None) -> float | None:
        return number if number is not None and math.isfinite(number) else None

    return {
        "ok": report.ok,
        "rows": [
            row._asdict() | {"error": finite(row.error), "bound": finite(row.bound)}
            for row in report.rows
        ],
        "settings": report.settings,
        "summary": [
            {"quantity": key[0], "dtype": dtype, "error": finite(worst.error), "path": worst.path}
            for (key, dtype), worst in _worst(report.rows, _quantity).items()
        ],
        "bugs": {
            "planted": len(report.findings),
            "caught": sum(finding.caught for finding in report.findings),
            "named": sum(finding.ok for finding in report.findings),
            "findings": [f._asdict() | {"ok": f.ok} for f in report.findings],
        },
    }


def show(report: Report, console: Console) -> None:
    """Print the settings, the measured errors, the worst of each quantity and the bugs."""
    for name, value in report.settings.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(_table(report.rows, _layer_and_quantity, ("layer", "quantity")))
    console.print("Worst of each quantity:")
    console.print(_table(report.rows, _quantity, ("quantity",)))
    for row in [row for row in report.rows if not row.ok][:20]:
        console.print(f"OUT OF BOUNDS: {row}", style="red", markup=False)
    _show_bugs(report.findings, console)
    judgement = "all in bounds" if all_ok(report.rows) else "NOT ALL IN BOUNDS"
    console.print(f"{len(report.rows)} values compared, {judgement}")


def _show_bugs(findings: list[MutantResult], console: Console) -> None:
    for finding in findings:
        if not finding.ok:
            fate = f"blamed on {finding.named}" if finding.caught else "not caught"
            console.print(f"BUG IN {finding.layer}: {finding.name}: {fate}", style="red")
    caught, named = sum(f.caught for f in findings), sum(f.ok for f in findings)
    console.print(f"{len(findings)} bugs planted, {caught} caught, {named} named by their layer")


Group = Callable[[Row], tuple[str, ...]]


def _layer_and_quantity(row: Row) -> tuple[str, ...]:
    """All blocks together, and an attention or a feed-forward network with its projections."""
    parts = re.sub(r"\d+", "*", row.layer).split(".")
    return ".".join(parts[:3]), row.quantity


def _quantity(row: Row) -> tuple[str, ...]:
    return (row.quantity,)


def _worst(rows: Iterable[Row], group: Group) -> dict[tuple[tuple[str, ...], DType], Row]:
    """The row of each group and type that is nearest to its bound, or beyond it."""

    def share(row: Row) -> tuple[bool, float, float]:
        return not row.ok, row.error / row.bound if row.bound else row.error, row.error

    worst: dict[tuple[tuple[str, ...], DType], Row] = {}
    for row in rows:
        key = group(row), row.dtype
        if key not in worst or share(row) > share(worst[key]):
            worst[key] = row
    return worst


def _table(rows: list[Row], group: Group, headings: tuple[str, ...]) -> Table:
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for dtype in dtypes:
        table.add_column("values", justify="right")
        table.add_column(dtype, justify="right", no_wrap=True)
        table.add_column("bound", justify="right", no_wrap=True)
    counts = Counter((group(row), row.dtype) for row in rows)
    worst = _worst(rows, group)
    for key in sorted({group(row) for row in rows}):
        cells = []
        for dtype in dtypes:
            row = worst.get((key, dtype))
            cells += ["", "", ""] if row is None else [str(counts[key, dtype]), *_cells(row)]
        table.add_row(*key, *cells)
    return table


def _cells(row: Row) -> tuple[str, str]:
    bound = "reported" if row.bound is None else f"{row.bound:.1e}"
    return (f"{row.error:.1e}" if row.ok else f"[red]{row.error:.1e} NO[/red]"), bound
