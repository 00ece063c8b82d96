"""`jaxformer plot RUN`: draw the curves of a run, finished or still going."""

import dataclasses
from collections.abc import Sequence

from jaxformer.cli.arguments import RunPath, parse
from jaxformer.errors import UserError
from jaxformer.extras import require_extra
from jaxformer.monitor.metrics import read_metrics

DESCRIPTION = "Draw RUN/curves.png from RUN/metrics.jsonl and print its path."


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """What `jaxformer plot` is asked."""

    run: RunPath
    """Directory of the run."""


def main(argv: Sequence[str]) -> int:
    """Draw the curves; the exit status is 0.

    Raises:
        UserError: when the directory is missing, or holds no metrics or damaged ones.
    """
    run = parse(PlotArguments, argv, "jaxformer plot", DESCRIPTION).run
    if not run.is_dir():
        raise UserError(f"{run} is not a directory: name the --run-dir of a training run")
    require_extra("plot", "drawing")
    metrics = read_metrics(run / "metrics.jsonl")

    from jaxformer.monitor.plots import draw_curves
    from jaxformer.tasks.config_io import load_config
    from jaxformer.tasks.kinds import kind_of

    curves, smoothing = run / "curves.png", 0.0
    if (run / "config.json").exists():
        config = load_config(run / "config.json")
        smoothing = kind_of(config).label_smoothing(config)
    draw_curves(metrics, curves, run.resolve().name, smoothing)
    print(curves)
    return 0
