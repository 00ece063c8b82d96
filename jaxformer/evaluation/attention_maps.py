"""Attention maps: every layer's and head's attention weights, as arrays and as a picture.

The model runs once, uncompiled and with plain attention, while Flax captures what each attention
returns.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxformer.data.tokenizer import Tokenizer
from jaxformer.evaluation.pictures import (
    escape_missing_glyphs,
    fonts,
    save_picture,
    text_size,
    wrapped,
)
from jaxformer.layers.attention import MultiHeadAttention
from jaxformer.layers.grouped_attention import GroupedQueryAttention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READING = "each row is a token that attends, each column one attended to; white 0, dark 1"
INK, FRAME = "#333333", "#bbbbbb"
CELL = 0.16
"""Inches of a token's row or column at least; its label must fit."""
SMALLEST = 0.6
"""Inches of a panel at least."""
MARGIN, GAP, HEAD, PAD = 0.12, 0.1, 0.14, 0.06
"""Inches at the picture's edges, between panels, of the line that names the heads, and between two
things that belong together."""
NARROWEST = 2.6
"""Inches that the picture's title and its reading take at least."""
BIG, MIDDLE, SMALL, TINY = 12, 10, 7, 6
"""Points of the title, of the blocks' titles, of notes, and of the tokens."""
MAX_TOKENS_PER_CHARACTER = 8
"""Tokens at most that are joined to whole characters."""
UNREADABLE = "\ufffd"
"""What a tokenizer decodes a part of a character to."""
SHOWN = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
"""How labels show white space."""

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
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, MultiHeadAttention | GroupedQueryAttention):
            module.implementation = "plain"  # the others have no weights
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


def labels(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """Each token's text with spaces made visible.

    Tokens that are parts of a character are labelled with it and their place, `é 1/2` and `é 2/2`;
    one that is part of none gets its number, and one that is not text `<s>`.
    """
    found: list[str] = []
    ids = tokens.tolist()
    known = [token for token in ids if token < tokenizer.vocab_size]
    # Behind another text: some tokenizers drop the blank before a text's first word.
    before = next(
        (known[:n] for n in range(1, MAX_TOKENS_PER_CHARACTER + 1) if _whole(tokenizer, known[:n])),
        [],
    )
    skipped = len(tokenizer.decode(before))
    while len(found) < len(ids):
        rest = ids[len(found) : len(found) + MAX_TOKENS_PER_CHARACTER]
        end = next((n for n, t in enumerate(rest) if t >= tokenizer.vocab_size), len(rest))
        if end == 0:
            found.append("<s>")
            continue
        groups = (rest[:n] for n in range(1, end + 1))
        parts = next((group for group in groups if _whole(tokenizer, group)), rest[:1])
        text = tokenizer.decode([*before, *parts])[skipped:].translate(SHOWN)
        if not _whole(tokenizer, parts):
            found.append(f"#{parts[0]}")
        elif len(parts) == 1:
            found.append(text)
        else:
            found += [f"{text} {n}/{len(parts)}" for n in range(1, len(parts) + 1)]
    return found


def _whole(tokenizer: Tokenizer, tokens: list[int]) -> bool:
    """Whether the tokens are whole characters, with no bytes of others at their ends."""
    return UNREADABLE not in tokenizer.decode(tokens)


def draw_attention(stacks: Sequence[Stack], path: Path, title: str) -> None:
    """Draw the weights into a PNG: a row per layer, a column per head, a block per stack.

    Each panel has the attending tokens from top to bottom and the attended ones from left to right;
    white is 0, dark is 1. The labels are at the left of the rows and under each block.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    save_picture(attention_figure(stacks, title), path)


def attention_figure(stacks: Sequence[Stack], title: str) -> "Figure":
    """The picture that `draw_attention` writes. Its size follows from all that is on it."""
    from matplotlib.figure import Figure

    stacks = [
        stack._replace(
            queries=[escape_missing_glyphs(word) for word in stack.queries],
            keys=[escape_missing_glyphs(word) for word in stack.keys],
        )
        for stack in stacks
    ]
    figure = Figure(dpi=150)
    line = text_size(figure, "layer", SMALL)[1]
    left = MARGIN + line + PAD + max(_longest(figure, s.queries) for s in stacks) + PAD
    panels = max(len(max(s.layers, key=len)) * (_panel(figure, s)[0] + GAP) - GAP for s in stacks)
    titles = max(text_size(figure, s.title, MIDDLE)[0] for s in stacks)
    width = max(left + max(panels, titles) + MARGIN, NARROWEST + 2 * MARGIN)
    name, reading = (
        wrapped(figure, escape_missing_glyphs(text), size, width - 2 * MARGIN)
        for text, size in ((title, BIG), (READING, SMALL))
    )
    heading = MARGIN + PAD
    heading += text_size(figure, name, BIG)[1] + text_size(figure, reading, SMALL)[1]
    height = heading + sum(_block_height(figure, stack) for stack in stacks) + MARGIN
    figure.set_size_inches(width, height)
    figure.set_dpi(min(150, 20_000 / max(width, height)))
    top = _write(figure, name, MARGIN, height - MARGIN, BIG)
    top = _write(figure, reading, MARGIN, top - PAD, SMALL)
    for stack in stacks:
        _draw_stack(figure, stack, left, top)
        top -= _block_height(figure, stack)
    return figure


def _write(figure: "Figure", text: str, left: float, top: float, size: float) -> float:
    """Write a text below a height; returns where it ends, all in inches from below."""
    width, height = figure.get_size_inches()
    at = {"x": left / width, "y": top / height, "va": "top", "fontsize": size}
    figure.text(s=text, color=INK, parse_math=False, family=fonts([text]), **at)
    return top - text_size(figure, text, size)[1]


def _longest(figure: "Figure", words: Sequence[str]) -> float:
    """Inches that the longest label takes."""
    return max(text_size(figure, word, TINY)[0] for word in words)


def _panel(figure: "Figure", stack: Stack) -> tuple[float, float]:
    """Width and height of one head's panel; its rows and columns are as high as their labels."""
    highest = max(text_size(figure, word, TINY)[1] for word in (*stack.queries, *stack.keys))
    cell = max(CELL, 1.1 * highest)
    return max(cell * len(stack.keys), SMALLEST), max(cell * len(stack.queries), SMALLEST)


def _block_height(figure: "Figure", stack: Stack) -> float:
    title = text_size(figure, stack.title, MIDDLE)[1]
    panels = len(stack.layers) * (_panel(figure, stack)[1] + GAP) - GAP
    return 2 * PAD + title + PAD + HEAD + panels + PAD + _longest(figure, stack.keys)


def _draw_stack(figure: "Figure", stack: Stack, left: float, top: float) -> None:
    """Draw a stack's panels below a height; its panels begin at `left`."""
    width, height = figure.get_size_inches()
    across, down = _panel(figure, stack)
    top = _write(figure, stack.title, left, top - 2 * PAD, MIDDLE) - PAD - HEAD
    for row, layer in enumerate(stack.layers):
        bottom = top - row * (down + GAP) - down
        for column, head in enumerate(layer):
            corner = (left + column * (across + GAP)) / width, bottom / height
            axes = figure.add_axes((*corner, across / width, down / height))
            _draw_panel(axes, head)
            if row == 0:
                axes.set_title(f"head {column + 1}", fontsize=SMALL, color=INK, pad=2)
            if column == 0:
                _label(axes.yaxis, stack.queries)
                at = {"x": MARGIN / width, "y": (bottom + down / 2) / height, "va": "center"}
                figure.text(s=f"layer {row + 1}", fontsize=SMALL, color=INK, rotation=90, **at)
            if row == len(stack.layers) - 1:
                _label(axes.xaxis, stack.keys, rotation=90)


def _draw_panel(axes: Any, weights: Float[np.ndarray, "L M"]) -> None:
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FRAME)


def _label(axis: Any, words: Sequence[str], rotation: int = 0) -> None:
    axis.set_ticks(
        range(len(words)),
        words,
        fontsize=TINY,
        rotation=rotation,
        parse_math=False,
        family=fonts(words),
    )
    axis.set_tick_params(length=0, pad=1, colors=INK)
