"""curves.png is drawn whatever a run has measured; warnings are errors here."""

import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from jaxformer.errors import UserError
from jaxformer.monitor.plots import draw_curves, draw_side_by_side, running_mean
from tests.drawn import assert_readable

NAN, INF = math.nan, math.inf


def rows(losses, split="train", **columns):
    return [
        {"step": step, "split": split, "loss": loss}
        | {name: values[step - 1] for name, values in columns.items()}
        for step, loss in enumerate(losses, 1)
    ]


def png_size(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:])


@pytest.mark.parametrize(
    "metrics",
    [
        rows([2.5]),
        rows([2.5], "val"),
        rows([NAN]),
        rows([INF, -INF], "val"),
        rows([3.0, NAN, 2.0, INF, 1.0]),
        rows([3.0, 2.0], learning_rate=[0.0, 0.0]),
        rows([3.0, 2.0], grad_norm=[0.0, 1.0]),
        rows([3.0, 2.0], grad_norm=[NAN, NAN], tokens_per_second=[NAN, 4e4]),
        rows(np.linspace(5, 1, 300)) + rows(np.linspace(5, 2, 300), "val"),
        [{"step": 0, "split": "train", "loss": 1.0}],
        [*rows([3.0, 2.0]), {"step": 3, "split": "train", "loss": 1.0, "learning_rate": 0.1}],
    ],
)
def test_whatever_was_measured_is_drawn(metrics, tmp_path):
    path = tmp_path / "curves.png"
    draw_curves(metrics, path, "run")
    assert png_size(path)[0] == 1200
    assert os.listdir(tmp_path) == ["curves.png"]


number = st.floats(-1e6, 1e6) | st.sampled_from([NAN, INF, -INF])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 10**6), "split": st.sampled_from(["train", "val"])}
            | {"loss": number},
            optional={"learning_rate": number, "grad_norm": number, "tokens_per_second": number},
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=8)
def test_any_metrics_are_drawn(tmp_path_factory, metrics):
    path = tmp_path_factory.mktemp("run") / "curves.png"
    draw_curves(metrics, path, "run")
    assert png_size(path)[0] == 1200


@pytest.mark.parametrize("title", ["$x_{1$", "日本", "a_{b", ""])
def test_any_name_of_a_run_is_a_title(title, tmp_path):
    draw_curves(rows([1.0]), tmp_path / "curves.png", title)
    assert png_size(tmp_path / "curves.png")[0] == 1200


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws metrics and gives the figure instead of the file."""

    def draw(metrics, title="run", **options) -> Figure:
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
        if isinstance(metrics, dict):
            draw_side_by_side(metrics, tmp_path / "curves.png")
        else:
            draw_curves(metrics, tmp_path / "curves.png", title, **options)
        (figure,) = figures
        return figure

    return draw


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def points(line) -> list[tuple[float, float]]:
    return list(zip(*map(np.ndarray.tolist, line.get_data()), strict=True))


def test_losses_have_labelled_axes_and_both_curves(drawn):
    (axes,) = drawn(rows([3.0, 2.0, 1.5]) + rows([3.5, 2.5, 2.6], "val")).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "loss (nats / token)")
    measured, smooth, validation, best = axes.get_lines()
    assert points(measured) == points(smooth) == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert points(validation) == [(1, 3.5), (2, 2.5), (3, 2.6)]
    assert points(best) == [(2, 2.5)]
    assert legend(axes) == [
        "training, 1.5000 at the end (running mean)",
        "validation, best 2.5000 at step 2",
    ]


def test_label_smoothing_that_only_one_loss_has_is_named(drawn):
    (axes,) = drawn(rows([3.0, 2.0]) + rows([1.0], "val"), label_smoothing=0.1).axes
    assert legend(axes)[0] == "training with label smoothing 0.1, 2.0000 at the end (running mean)"


def test_what_is_not_finite_is_a_gap_and_named(drawn):
    (axes,) = drawn(rows([3.0, INF, 1.5]) + rows([NAN, 2.0], "val")).axes
    assert np.isnan(axes.get_lines()[0].get_ydata()).tolist() == [False, True, False]
    assert axes.get_lines()[1].get_marker() == "o"  # the points beside the gap are seen
    assert legend(axes) == [
        "training, 1.5000 at the end (running mean)",
        "first not finite at step 2",
        "validation, best 2.0000 at step 2",
    ]


def test_a_training_that_ends_without_finite_losses_has_no_mean_at_the_end(drawn):
    ended = rows([3.0, INF, 1.5, NAN, NAN])
    (axes,) = drawn(ended).axes
    assert legend(axes) == [
        "training, 1.5000, not finite from step 4 (running mean)",
        "first not finite at step 2",
    ]
    figure = drawn({"a": ended, "b": rows([NAN, INF])})
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
        "a: training 1.5000, not finite from step 4",
        "b: training not finite from step 1",
    ]


def test_each_column_has_its_panel(drawn):
    columns = {
        "tokens_per_second": [7.0, 8.0],
        "learning_rate": [0.1, 0.2],
        "grad_norm": [4.0, INF],
    }
    losses, *panels = drawn(rows([2.0, 1.0], **columns)).axes
    assert losses.get_title() == ""
    assert [axes.get_title() for axes in panels] == ["learning rate", "gradient norm", "tokens / s"]
    shown = [axes.get_lines()[0].get_ydata() for axes in panels]
    assert np.array_equal(shown, [[0.1, 0.2], [4.0, NAN], [7.0, 8.0]], equal_nan=True)
    assert [axes.get_yscale() for axes in panels] == ["linear", "log", "linear"]
    assert len({axes.get_position().x0 for axes in panels}) == 3
    assert {axes.get_xlim() for axes in panels} == {losses.get_xlim()}


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"no metrics to draw in .*: wait for the run's first steps"
    ):
        draw_curves([], tmp_path / "curves.png", "run")
    assert os.listdir(tmp_path) == []


def test_the_mean_is_over_the_finite_values_around_each():
    values = np.arange(200.0)
    assert np.allclose(running_mean(values)[2:-2], values[2:-2])  # 2 points before, 2 behind
    assert np.isclose(running_mean(values)[0], 1.0)
    values[100] = NAN
    smooth = running_mean(values)
    assert np.isnan(smooth[100])
    assert np.isclose(smooth[101], (99 + 101 + 102 + 103) / 4)
    assert np.array_equal(running_mean(np.array([5.0, 1.0])), [5.0, 1.0])


def test_runs_side_by_side_have_a_colour_each_and_their_names(drawn):
    figure = drawn(
        {
            "a": rows([3.0, 2.0, 1.5]) + rows([3.5, 2.5, 2.6], "val"),
            "b": rows([2.0, 1.0]),
            "c": [],
            "d": rows([INF]) + rows([4.0], "val"),
        }
    )
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "loss (nats / token)")
    assert [points(line) for line in axes.get_lines()] == [
        [(1, 3.0), (2, 2.0), (3, 1.5)],
        [(1, 3.5), (2, 2.5), (3, 2.6)],
        [(2, 2.5)],
        [(1, 2.0), (2, 1.0)],
        [(1, 4.0)],
        [(1, 4.0)],
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "a: best 2.5000 at step 2",
        "b: training 1.0000 at the end",
        "c: nothing measured yet",
        "d: best 4.0000 at step 1",
        "validation",
        "training (running mean)",
    ]
    colors = [handle.get_color() for handle in legend.legend_handles[:4]]
    assert len({*colors}) == 4
    drawn_in = [line.get_color() for line in axes.get_lines()]
    assert drawn_in == [colors[0]] * 3 + [colors[1]] + [colors[3]] * 2


def test_thirty_runs_have_thirty_colours(drawn):
    figure = drawn({f"run {number}": rows([number]) for number in range(30)})
    assert len({tuple(line.get_color()) for line in figure.axes[0].get_lines()}) == 30


NAMES = [
    "base",
    "中文 日本 한국",
    "שלום سلام",
    "👍 $x_1$ a_{b",
    "long_" * 40,
    "many words " * 20,
    "\x1b\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_picture_is_cut_or_an_empty_box(drawn, name):
    assert_readable(drawn(rows([2.0, 1.0], grad_norm=[1.0, 2.0]), title=name))


def test_no_text_of_a_legend_is_cut_or_an_empty_box(drawn):
    assert_readable(drawn({name: rows([2.0]) for name in NAMES}))
