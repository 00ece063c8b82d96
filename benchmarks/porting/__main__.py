"""Run `divergence` on every port of `ports/` and `ports_blind/`, and count what it finds.

    python -m benchmarks.porting            each port with the weights of its own conversion
    python -m benchmarks.porting --carry    with drawn weights, so that PyTorch's are carried

Results go into benchmarks/results/porting.json, which keeps those of other ports and, of each port,
the first result that it ever had; the table of all of them into porting.md beside it, and into
docs/porting.md between `<!-- results: porting -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import RESULTS
from benchmarks.porting.case import FOLDERS, Case, load
from benchmarks.porting.score import Given, Totals, expected, score, table
from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError

DOCUMENT = Path(__file__).parents[2] / "docs" / "porting.md"
_TABLE = re.compile(r"(<!-- results: porting -->\n).*?(<!-- end -->)", re.DOTALL)


def run(case: Case, given: Given) -> dict[str, Any]:
    """One port: its counts, its seconds and what was reported."""
    from jaxformer.porting import divergence

    faults, found, error = expected(case, given), (), None
    port = case.jax() if given == "loaded" else case.fresh()
    model, inputs = case.torch(), case.inputs()
    begun = time.perf_counter()
    try:
        found = divergence(port, model, inputs, carry=given == "fresh").faults
    except Exception as raised:  # a user sees a traceback: each is counted and none ends the run
        error = f"{type(raised).__name__}: {raised}".splitlines()[0]
    return {
        **score(faults, found),
        "seconds": time.perf_counter() - begun,
        "error": error,
        "reported": [
            {"torch": report.torch, "cause": report.cause, "error": float(report.error)}
            for report in found
        ],
    }


def chosen(words: argparse.Namespace) -> Iterator[tuple[str, str, Case]]:
    """The ports that the flags select: folder, family and case.

    Raises:
        UserError: when there is none.
    """
    some = False
    for folder in words.folder or FOLDERS:
        for family, cases in load(folder).items():
            for case in cases:
                if words.family and family not in words.family:
                    continue
                if words.case in case.name and (case.carried or not words.carry):
                    some = True
                    yield folder, family, case
    if not some:
        raise UserError("no port is selected: leave out --folder, --family or --case")


def merged(old: Sequence[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows with a new one in its place; its first result stays."""
    names = ("folder", "weights", "family", "case")
    same = [r for r in old if all(r[name] == row[name] for name in names)]
    others = [r for r in old if r not in same]
    first = same[0]["first"] if same else {key: row[key] for key in row if key != "reported"}
    return [*others, {**row, "first": first}]


def write(path: Path, text: str) -> None:
    """Replace a file."""
    with atomic_write(path) as file:
        file.write(text.encode())


def verdict(row: dict[str, Any]) -> str:
    """One word or two for the line of a port."""
    if row["error"] is not None:
        return f"crash: {row['error']}"
    if row["extra"]:
        return "extra" if row["faults"] else "false alarm"
    if row["layers"] < row["faults"]:
        return "missed"
    return "silent" if not row["faults"] else "found" if row["causes"] < row["faults"] else "named"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where no port crashed and no correct one raised an alarm."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.porting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--carry", action="store_true", help="ports with drawn weights")
    parser.add_argument("--folder", action="append", choices=FOLDERS, help="of the ports")
    parser.add_argument("--family", action="append", help="a file of ports, such as llama")
    parser.add_argument("--case", default="", help="part of a case's name")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of porting.json")
    words = parser.parse_args(arguments)
    path = words.output / "porting.json"
    rows = json.loads(path.read_text())["ports"] if path.is_file() else []
    given: Given = "fresh" if words.carry else "loaded"
    new = []
    try:
        for folder, family, case in chosen(words):
            row = {
                "folder": folder,
                "weights": given,
                "family": family,
                "case": case.name,
                "style": case.style,
                **run(case, given),
            }
            new.append(row)
            rows = merged(rows, row)
            print(f"{row['seconds']:6.1f} s  {family}: {case.name}: {verdict(row)}", flush=True)
            for report in row["reported"] if verdict(row) != "named" else ():
                print(f"          {report['torch'] or 'the model'}: {report['cause']}")
            words.output.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps({"ports": rows}, indent=1) + "\n")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    text = table(rows)
    write(words.output / "porting.md", f"{text}\n")
    if words.output == RESULTS and DOCUMENT.is_file():
        document = DOCUMENT.read_text()
        write(DOCUMENT, _TABLE.sub(lambda found: f"{found[1]}{text}\n{found[2]}", document))
    print(f"\n{text}")
    total = Totals.of(new)
    return int(total.crashes > 0 or total.false_alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
