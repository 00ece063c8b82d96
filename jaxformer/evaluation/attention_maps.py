"""Attention maps: every layer's and head's attention weights, as arrays and as a picture.

The model runs once, unchanged and uncompiled, while Flax captures what each attention returns.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxformer.atomic import atomic_write

READING = "each row is a token that attends, each column one attended to; white 0, dark 1"
INK, FRAME = "#333333", "#bbbbbb"
CELL = 0.16
"""Inches of a token's row or column; its label must fit."""
SMALLEST = 1.0
"""Inches of a panel at least."""
TITLE, GAP, HEADING, LETTER = 0.6, 0.1, 0.45, 0.055
"""Inches of the picture's title, between panels, above a block, and of a label's letter."""

Weights = Mapping[str, Float[np.ndarray, "B H L M"]]


class Stack(NamedTuple):
    """The attentions of one kind, one per layer, and the tokens they are between."""

    title: str
    layers: Sequence[Float[np.ndarray, "H L M"]]
    queries: Sequence[str]
    """L labels of the tokens that attend."""
    keys: Sequence[str]
    """M labels of the tokens that are attended to."""


def attention_weights(model: nnx.Module, *args: Any) -> Weights:
    """softmax(q k^T / sqrt(K)) of every attention in `model(*args)`, by its path, in call order.

    A path is such as `decoder/blocks/1/cross_attention`. Dropout must be off, as it is when no key
    is given.
    """
    captured = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    _, outputs = captured(*jax.tree.map(jnp.asarray, args))
    found = {}
    for path, outcome in nnx.to_flat_state(outputs):
        if path[-1] == "attend_to":
            ((_, weights),) = outcome.get_value()
            found["/".join(map(str, path[:-1]))] = np.asarray(weights, np.float64)
    return found


def layers_of(weights: Weights, kind: str) -> list[Float[np.ndarray, "H L M"]]:
    """The first row's weights of the attentions whose path matches, by layer.

    `kind` is such as `encoder/blocks/*/attention`.
    """
    pattern = re.compile(re.escape(kind).replace(r"\*", r"(\d+)"))
    found = {int(m[1]): w[0] for path, w in weights.items() if (m := pattern.fullmatch(path))}
    return [found[layer] for layer in sorted(found)]


def draw_attention(stacks: Sequence[Stack], path: Path, title: str) -> None:
    """Draw the weights into a PNG: a row per layer, a column per head, a block per stack.

    Each panel has the attending tokens from top to bottom and the attended ones from left to right;
    white is 0, dark is 1. The labels are at the left of the rows and under each block.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    from matplotlib.figure import Figure

    label = max(_longest(words) for s in stacks for words in (s.queries, s.keys))
    heads = max(len(layer) for stack in stacks for layer in stack.layers)
    width = label + heads * (max(_panel_size(stack)[0] for stack in stacks) + GAP) + 0.2
    heights = [
        HEADING + len(s.layers) * (_panel_size(s)[1] + GAP) + _longest(s.keys) for s in stacks
    ]
    height = TITLE + sum(heights)
    figure = Figure(figsize=(width, height), dpi=min(150, 20_000 / max(width, height)))
    figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=12, color=INK, parse_math=False)
    figure.text(0.15 / width, 1 - 0.5 / height, READING, fontsize=7, color=INK)
    top = height - TITLE
    for stack, block in zip(stacks, heights, strict=True):
        _draw_stack(figure, stack, label, top)
        top -= block
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # tokens of any script
        figure.savefig(file, format="png")


def _longest(words: Sequence[str]) -> float:
    """Inches that the labels take beside a panel."""
    return LETTER * max(map(len, words)) + 0.3


def _panel_size(stack: Stack) -> tuple[float, float]:
    """Width and height of one head's panel."""
    return max(CELL * len(stack.keys), SMALLEST), max(CELL * len(stack.queries), SMALLEST)


def _draw_stack(figure: Any, stack: Stack, left: float, top: float) -> None:
    """Draw a stack's panels; `left` and `top` are the corner of its heading."""
    width, height = figure.get_size_inches()
    across, down = _panel_size(stack)
    figure.text(left / width, (top - 0.2) / height, stack.title, fontsize=10, color=INK)
    for row, layer in enumerate(stack.layers):
        bottom = top - HEADING - row * (down + GAP) - down
        for column, head in enumerate(layer):
            corner = (left + column * (across + GAP)) / width, bottom / height
            axes = figure.add_axes((*corner, across / width, down / height))
            _draw_panel(axes, head)
            if row == 0:
                axes.set_title(f"head {column + 1}", fontsize=7, color=INK, pad=2)
            if column == 0:
                _label(axes.yaxis, stack.queries)
                at = {"x": 0.15 / width, "y": (bottom + down / 2) / height, "va": "center"}
                figure.text(s=f"layer {row + 1}", fontsize=7, color=INK, rotation=90, **at)
            if row == len(stack.layers) - 1:
                _label(axes.xaxis, stack.keys, rotation=90)


def _draw_panel(axes: Any, weights: Float[np.ndarray, "L M"]) -> None:
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FRAME)


def _label(axis: Any, words: Sequence[str], rotation: int = 0) -> None:
    axis.set_ticks(range(len(words)), words, fontsize=6, rotation=rotation, parse_math=False)
    axis.set_tick_params(length=0, pad=1, colors=INK)
