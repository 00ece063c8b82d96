"""Write the tables of docs/performance.md from the files in benchmarks/results, and the pictures.

    python -m benchmarks.performance

A table stands between `<!-- results: NAME -->` and `<!-- end -->` and is made from NAME.json; the
prose around it stays. docs/images/growth.png is drawn from growth.json, where there is one.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.comparison import RESULTS, Figures, table
from jaxformer.atomic import atomic_write

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = Path("images") / "growth.png"
NOTHING = "Not measured yet: there is no benchmarks/results/{}.json."
_TABLE = re.compile(r"<!-- results: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(document: str, results: Path) -> str:
    """The document with each table replaced by that of its file."""

    def replace(found: re.Match[str]) -> str:
        name, path = found["name"], results / f"{found['name']}.json"
        text = table(json.loads(path.read_text())) if path.is_file() else NOTHING.format(name)
        return f"<!-- results: {name} -->\n{text}\n<!-- end -->"

    return _TABLE.sub(replace, document)


def curves(
    growth: Mapping[str, Any],
) -> dict[str, dict[str, list[tuple[int, float, float, float]]]]:
    """By size and side: its value, milliseconds of a step, MiB, and seconds of the first call."""
    found: dict[str, dict[str, list[tuple[int, float, float, float]]]] = {}
    for case in growth["cases"]:
        for row in case["sides"]:
            if "along" in case and "seconds" in row:
                point = (
                    case["value"],
                    1e3 * Figures.of(row).median,
                    row["peak_bytes"] / 2**20,
                    row["first_seconds"],
                )
                found.setdefault(case["along"], {}).setdefault(row["side"], []).append(point)
    return found


def draw(growth: Mapping[str, Any], path: Path) -> None:
    """Three rows of curves, time, memory and first call, over each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = curves(growth)
    quantities = ("ms per step", "memory, MiB", "first call, s")
    figure, axes = pyplot.subplots(
        len(quantities), len(found), figsize=(3.2 * len(found), 7.5), squeeze=False
    )
    for column, (along, sides) in enumerate(found.items()):
        for row, quantity in enumerate(quantities):
            axis = axes[row][column]
            for side, points in sides.items():
                axis.plot([p[0] for p in points], [p[row + 1] for p in points], "o-", label=side)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(along)
            axis.set_ylabel(quantity if column == 0 else "")
            axis.grid(alpha=0.3)
        axes[0][column].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Write the document and the picture."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--results", type=Path, default=RESULTS)
    flags.add_argument("--document", type=Path, default=DOCUMENT)
    words = flags.parse_args()
    text = filled(words.document.read_text(encoding="utf-8"), words.results)
    with atomic_write(words.document) as file:
        file.write(text.encode())
    growth = words.results / "growth.json"
    if growth.is_file():
        picture = words.document.parent / PICTURE
        picture.parent.mkdir(exist_ok=True)
        draw(json.loads(growth.read_text()), picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
