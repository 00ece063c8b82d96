"""`jaxformer plot RUN [RUN ...]`: draw the curves of runs, finished or still going."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli.arguments import parse
from jaxformer.cli.runs import RunPaths, run_names
from jaxformer.errors import UserError
from jaxformer.evaluation.pictures import check_output
from jaxformer.extras import require_extra
from jaxformer.monitor.metrics import read_metrics

DESCRIPTION = (
    "Draw RUN/curves.png from RUN/metrics.jsonl, or the losses of several runs side by side in "
    "curves.png here, and print the picture's path."
)


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """What `jaxformer plot` is asked."""

    runs: RunPaths
    """Directories of the runs."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The picture, FILE.png; by default curves.png, of one run in its directory."""


def main(argv: Sequence[str]) -> int:
    """Draw the curves; the exit status is 0.

    Raises:
        UserError: when a directory is missing, or holds no metrics or damaged ones, or the file is
            there and no picture of jaxformer.
    """
    arguments = parse(PlotArguments, argv, "jaxformer plot", DESCRIPTION)
    names = run_names(arguments.runs)
    require_extra("plot", "drawing")
    several = len(names) > 1
    place = Path() if several else arguments.runs[0]
    output = arguments.output or place / "curves.png"
    check_output("--output", output)
    metrics = [read_metrics(run / "metrics.jsonl") for run in arguments.runs]

    from jaxformer.monitor.plots import draw_curves, draw_side_by_side
    from jaxformer.tasks.config_io import load_config
    from jaxformer.tasks.kinds import kind_of

    if several:
        draw_side_by_side(dict(zip(names, metrics, strict=True)), output)
        print(output)
        return 0
    [run], label_smoothing = arguments.runs, 0.0
    if (run / "config.json").exists():
        config = load_config(run / "config.json")
        label_smoothing = kind_of(config).label_smoothing(config)
    if not metrics[0]:
        raise UserError(f"no metrics to draw in {run}: wait for the run's first steps")
    draw_curves(metrics[0], output, run.resolve().name, label_smoothing)
    print(output)
    return 0
