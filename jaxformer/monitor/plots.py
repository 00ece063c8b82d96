"""curves.png: the losses of a run over its steps, and underneath what explains them."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, VALIDATION, ALARM, INK, GRID = "#2a6fbb", "#d9622b", "#c0182f", "#333333", "#e6e6e6"

PANELS = (
    # column of metrics.jsonl, label, scale, numbers on the axis
    ("learning_rate", "learning rate", "linear", "{x:g}"),
    ("grad_norm", "gradient norm", "log", "{x:g}"),
    ("tokens_per_second", "tokens / s", "linear", "{x:,.0f}"),
)
"""What is drawn under the losses, where the metrics have it."""


def draw_curves(
    metrics: Sequence[dict[str, Any]], path: Path, title: str, smoothing: float = 0.0
) -> None:
    """Draw the curves of a run into a PNG of 1200 pixels width.

    Above, the training loss as measured, faint, with its mean over 2% of the points, and the
    validation loss with its best value marked; below, each of PANELS that the metrics hold. A loss
    that is not finite leaves a gap, and the first of them is marked. The horizontal axes are
    optimizer steps, losses are in nats per token; `smoothing` is the label smoothing in the
    training loss alone.

    Raises:
        UserError: when there is nothing to draw.
        OSError: naming the file, when it cannot be written.
    """
    if not metrics:
        raise UserError(f"no metrics to draw in {path.parent}: wait for the run's first steps")

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [row for row in metrics if row["split"] == "train"]
    panels = [panel for panel in PANELS if any(panel[0] in row for row in rows)]
    margins = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(8, 6.75 if panels else 4.9), dpi=150, layout=margins)
    figure.suptitle(title, color=INK, fontsize=13, parse_math=False)
    heights = (2.7, 1.0) if panels else (1.0,)
    grid = figure.add_gridspec(len(heights), len(panels) or 1, height_ratios=heights)
    _draw_losses(figure.add_subplot(grid[0, :]), metrics, smoothing)
    for place, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(grid[1, place]), rows, *panel)
    last = max(row["step"] for row in metrics) or 1
    for axes in figure.axes:
        axes.set_xlim(-0.02 * last, 1.02 * last)

    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a title in any script
        figure.savefig(file, format="png")


def _draw_losses(axes: "Axes", metrics: Sequence[dict[str, Any]], smoothing: float) -> None:
    _style(axes)
    axes.set_ylabel("loss (nats / token)")
    steps, losses = _curve([row for row in metrics if row["split"] == "train"], "loss")
    finite = np.isfinite(losses)
    if finite.any():
        mean = _smoothed(losses)
        loss = f"training with label smoothing {smoothing:g}" if smoothing else "training"
        label = f"{loss}, {mean[finite][-1]:.4f} at the end (running mean)"
        axes.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=0.8)
        axes.plot(steps, mean, _line(losses), color=TRAIN, linewidth=1.8, ms=3, label=label)
    if not finite.all():
        first = steps[~finite][0]
        label = f"not finite from step {first:,.0f}"
        axes.axvline(first, color=ALARM, linestyle="--", linewidth=1.2, label=label)
    steps, losses = _curve([row for row in metrics if row["split"] == "val"], "loss")
    if np.isfinite(losses).any():
        best = np.nanargmin(losses)
        label = f"validation, best {losses[best]:.4f} at step {steps[best]:,.0f}"
        axes.plot(steps, losses, "o-", color=VALIDATION, linewidth=1.8, markersize=3, label=label)
        axes.plot(steps[best], losses[best], "o", color=VALIDATION, markersize=8, fillstyle="none")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none", framealpha=0.9, fontsize=10, labelcolor=INK)


def _draw_panel(
    axes: "Axes", rows: Sequence[dict[str, Any]], name: str, label: str, scale: str, numbers: str
) -> None:
    _style(axes)
    axes.set_title(label, fontsize=10, color=INK)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    steps, values = _curve(rows, name)
    if scale == "log" and np.nanmin(values, initial=math.inf) > 0:
        axes.set_yscale("log", subs=(2, 5))
        axes.yaxis.set_minor_formatter(numbers)
        axes.tick_params(which="minor", labelsize=8)
    axes.yaxis.set_major_formatter(numbers)
    axes.plot(steps, values, _line(values), color=TRAIN, linewidth=1, markersize=3)


def _style(axes: "Axes") -> None:
    axes.set_xlabel("optimizer steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _curve(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one column; what is not finite is NaN, a gap."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values among the 2% of the points around each; gaps stay gaps."""
    window = np.ones(2 * (len(values) // 100) + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _line(values: np.ndarray) -> str:
    """A line; with dots where values are few, or one between two gaps would not be seen."""
    return "o-" if len(values) < 50 else "-"
