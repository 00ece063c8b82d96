"""curves.png: the losses of a run over its steps, and underneath what explains them; or the losses
of several runs side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.evaluation.pictures import escape_missing_glyphs, fonts, save_picture, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, VALIDATION, ALARM, INK, GRID = "#2a6fbb", "#d9622b", "#c0182f", "#333333", "#e6e6e6"

TITLE, LEGEND = 13, 9
"""Points of the title, and of the legend of several runs."""

PANELS = (
    # column of metrics.jsonl, label, scale, numbers on the axis
    ("learning_rate", "learning rate", "linear", "{x:g}"),
    ("grad_norm", "gradient norm", "log", "{x:g}"),
    ("tokens_per_second", "tokens / s", "linear", "{x:,.0f}"),
)
"""What is drawn under the losses, where the metrics have it."""


def draw_curves(
    metrics: Sequence[dict[str, Any]], path: Path, title: str, label_smoothing: float = 0.0
) -> None:
    """Draw the curves of a run into a PNG of 1200 pixels width.

    Above, the training loss as measured, faint, with its mean over 2% of the points, and the
    validation loss with its best value marked; below, each of PANELS that the metrics hold. A loss
    that is not finite leaves a gap, and the first of them is marked. The horizontal axes are
    optimizer steps, losses are in nats per token; `label_smoothing` is that of the training loss
    alone.

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
    title = wrapped(figure, escape_missing_glyphs(title), TITLE, 7.8)
    figure.suptitle(title, color=INK, fontsize=TITLE, parse_math=False, family=fonts([title]))
    heights = (2.7, 1.0) if panels else (1.0,)
    grid = figure.add_gridspec(len(heights), len(panels) or 1, height_ratios=heights)
    _draw_losses(figure.add_subplot(grid[0, :]), metrics, label_smoothing)
    for place, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(grid[1, place]), rows, *panel)
    last = max(row["step"] for row in metrics) or 1
    for axes in figure.axes:
        axes.set_xlim(-0.02 * last, 1.02 * last)

    save_picture(figure, path)


def draw_side_by_side(runs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Draw the losses of several runs, by their names, into a PNG of 1200 pixels width.

    Each run has a colour: its validation losses are a line with dots, the best of them marked, and
    the mean of its training loss over 2% of the points is a thin line. A run that has measured
    nothing yet is in the legend alone.

    Raises:
        UserError: when there is nothing to draw.
        OSError: naming the file, when it cannot be written.
    """
    if not any(runs.values()):
        raise UserError(f"no metrics to draw of {', '.join(runs)}: wait for the first steps")

    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    margins = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(8, 4.9), dpi=150, layout=margins)
    axes = figure.add_subplot()
    _style(axes)
    axes.set_ylabel("loss (nats / token)")
    handles, texts = [], []
    for color, (name, metrics) in zip(_colors(len(runs)), runs.items(), strict=True):
        note = _draw_run(axes, metrics, color)
        handles.append(Line2D([], [], color=color, linewidth=3))
        texts.append(wrapped(figure, escape_missing_glyphs(f"{name}: {note}"), LEGEND, 7.2))
    for style, label in (
        (Line2D([], [], color=INK, marker="o", markersize=3, linewidth=1.8), "validation"),
        (Line2D([], [], color=INK, alpha=0.6, linewidth=0.9), "training (running mean)"),
    ):
        handles.append(style)
        texts.append(label)
    columns = 1 if max(map(len, texts)) > 50 else 2
    lines = sum(1 + text.count("\n") for text in texts)
    figure.set_figheight(4.2 + 0.17 * math.ceil(lines / columns))
    legend = figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=columns,
        edgecolor="none",
        labelcolor=INK,
        prop={"size": LEGEND, "family": fonts(texts)},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_picture(figure, path)


def _draw_run(axes: "Axes", metrics: Sequence[dict[str, Any]], color: Any) -> str:
    """Draw the losses of one run among others; what the legend says of it."""
    steps, losses = _curve([row for row in metrics if row["split"] == "train"], "loss")
    note = "nothing measured yet"
    if np.isfinite(losses).any():
        mean = running_mean(losses)
        axes.plot(steps, mean, _line(losses), color=color, alpha=0.6, linewidth=0.9, ms=2)
    if len(losses):
        note = f"training {in_words(*end_of_mean(steps, losses))}"
    steps, losses = _curve([row for row in metrics if row["split"] == "val"], "loss")
    if np.isfinite(losses).any():
        best = np.nanargmin(losses)
        axes.plot(steps, losses, "o-", color=color, linewidth=1.8, markersize=3)
        axes.plot(steps[best], losses[best], "o", color=color, markersize=8, fillstyle="none")
        note = f"best {losses[best]:.4f} at step {steps[best]:,.0f}"
    return note


def _colors(number: int) -> list[Any]:
    """As many colours as there are runs, all different."""
    import matplotlib

    if number <= 10:
        return [matplotlib.colormaps["tab10"](place) for place in range(number)]
    return list(matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, number)))


def _draw_losses(axes: "Axes", metrics: Sequence[dict[str, Any]], label_smoothing: float) -> None:
    _style(axes)
    axes.set_ylabel("loss (nats / token)")
    steps, losses = _curve([row for row in metrics if row["split"] == "train"], "loss")
    finite = np.isfinite(losses)
    if finite.any():
        mean = running_mean(losses)
        loss = "training"
        if label_smoothing:
            loss += f" with label smoothing {label_smoothing:g}"
        label = f"{loss}, {in_words(*end_of_mean(steps, losses))} (running mean)"
        axes.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=0.8)
        axes.plot(steps, mean, _line(losses), color=TRAIN, linewidth=1.8, ms=3, label=label)
    if not finite.all():
        first = steps[~finite][0]
        label = f"first not finite at step {first:,.0f}"
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


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values among the 2% of the points around each; gaps stay gaps."""
    if not len(values):
        return values
    window = np.ones(2 * (len(values) // 100) + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def end_of_mean(steps: np.ndarray, losses: np.ndarray) -> tuple[float | None, int | None]:
    """The running mean at the last finite loss, and the step from which no loss is finite."""
    measured = np.flatnonzero(np.isfinite(losses))
    lost = steps[measured[-1] + 1 :] if len(measured) else steps
    mean = float(running_mean(losses)[measured[-1]]) if len(measured) else None
    return mean, int(lost[0]) if len(lost) else None


def in_words(mean: float | None, not_finite_from: int | None) -> str:
    """What `end_of_mean` gives: `5.4462 at the end`, or `5.4462, not finite from step 5`."""
    if not_finite_from is None:
        return f"{mean:.4f} at the end"
    lost = f"not finite from step {not_finite_from:,}"
    return lost if mean is None else f"{mean:.4f}, {lost}"


def _line(values: np.ndarray) -> str:
    """A line; with dots where values are few, or one between two gaps would not be seen."""
    return "o-" if len(values) < 50 else "-"
