"""The weights are those of the attention, and every panel of the picture is one head's."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.image import imread

from jaxformer.config import GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.data.tokenizer import ByteTokenizer
from jaxformer.evaluation.attention_maps import (
    READING,
    Stack,
    attention_figure,
    attention_weights,
    draw_attention,
    labels,
    layers_of,
)
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from tests.drawn import assert_readable, written
from tests.tokenizers_of_all_kinds import SENTENCES

CONFIG = dataclasses.replace(TRANSFORMER_PRESETS["toy"], init_std=0.6)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 64, (2, 9)), rng.integers(0, 64, (2, 7))
    model = Transformer(CONFIG, nnx.Rngs(0))
    return attention_weights(model, jnp.asarray(source), jnp.asarray(target))


def test_every_attention_is_there_and_each_row_is_a_distribution(weights):
    shapes = {path: found.shape for path, found in weights.items()}
    assert shapes == {
        **{f"encoder/blocks/{i}/attention": (2, 4, 9, 9) for i in range(2)},
        **{f"decoder/blocks/{i}/self_attention": (2, 4, 7, 7) for i in range(2)},
        **{f"decoder/blocks/{i}/cross_attention": (2, 4, 7, 9) for i in range(2)},
    }
    for found in weights.values():
        np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-6)
    for layer in layers_of(weights, "decoder/blocks/*/self_attention"):
        assert not np.triu(layer, 1).any()


def test_they_are_what_the_attention_itself_returns():
    model = GPT(GPT_PRESETS["toy"], nnx.Rngs(0))
    tokens = jnp.arange(5)[None]
    found = attention_weights(model, tokens)
    block = model.blocks[0]
    x = block.attention_norm(model.embed(tokens) + model.positions(jnp.arange(5)))
    q, kv = block.attention.split_heads(block.attention.query(x)), block.attention.project_kv(x)
    _, expected = block.attention.attend_to(q, kv, jnp.tril(jnp.ones((1, 1, 5, 5), bool)))
    np.testing.assert_array_equal(found["blocks/0/attention"], expected)


def test_layers_come_in_their_order():
    weights = {f"blocks/{i}/attention": np.full((1, 1, 1, 1), i) for i in (10, 9, 0, 1)}
    assert [int(layer.item()) for layer in layers_of(weights, "blocks/*/attention")] == [
        0,
        1,
        9,
        10,
    ]


def test_a_full_weight_is_dark_and_none_is_light(tmp_path):
    path = tmp_path / "attention.png"
    words = ["<s>", "␣a", "漢", "$x_1$", "_"]
    draw_attention([Stack("identity", [np.eye(5)[None]], words, words)], path, "a $ b_c")
    picture = imread(path)[..., :3].mean(axis=-1)
    assert 0.02 < np.mean(picture < 0.45) < 0.2  # five of twenty-five cells of the only panel
    light = tmp_path / "light.png"
    draw_attention([Stack("identity", [np.zeros((1, 5, 5))], words, words)], light, "a $ b_c")
    assert np.mean(imread(light)[..., :3].mean(axis=-1) < 0.45) < 0.02


WORDS = [
    "the",
    "␣cat",
    "中 1/3",
    "日本語",
    "한국",
    "שלום",
    "سلام",
    "👍",
    "é",
    "$x_1",
    "a_rather_long_word",
]


def one_layer(words, heads=1, title="text attends to text"):
    return Stack(title, [np.full((heads, len(words), len(words)), 0.5)], words, words)


@pytest.mark.parametrize("title", ["run, step 1", "a_long_name_" * 9 + "中文, step 12000"])
@pytest.mark.parametrize(
    "stacks",
    [
        [one_layer(WORDS, heads=3)],
        [one_layer(["a"])],
        [one_layer(WORDS[:1]), one_layer(WORDS, title="decoder: target to source")],
        [one_layer(WORDS * 5)],
    ],
)
def test_no_text_is_cut_or_an_empty_box(stacks, title):
    figure = attention_figure(stacks, title)
    assert_readable(figure)
    shown = [" ".join(text.get_text().split("\n")) for text in written(figure)]
    assert READING in shown


@pytest.mark.parametrize(("words", "heads"), [(["a"], 1), (WORDS, 1), (WORDS, 4)])
def test_what_is_drawn_reaches_the_edges(words, heads):
    figure = attention_figure([one_layer(words, heads)], "run, step 1")
    boxes = [text.get_window_extent() for text in written(figure)]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    edges, dpi = figure.bbox, figure.dpi
    right, bottom = max(box.x1 for box in boxes), min(box.y0 for box in boxes)
    assert (edges.x1 - right) / dpi < 0.3 or edges.width / dpi < 3  # inches
    assert bottom / dpi < 0.3
    assert (edges.y1 - max(box.y1 for box in boxes)) / dpi < 0.3


def test_a_picture_of_one_panel_is_small():
    width, height = attention_figure([one_layer(["a"])], "run, step 1").get_size_inches()
    assert width < 3
    assert height < 2.5


def test_a_label_shows_the_space_before_a_word_at_any_position():
    tokens = SENTENCES.encode("the cat the cat\n")
    words = labels(SENTENCES, tokens)
    assert "".join(words) == "␣the␣cat␣the␣cat⏎"
    assert words[: len(words) // 2] == words[len(words) // 2 : -1]


def test_tokens_that_are_parts_of_a_character_are_labelled_with_it():
    tokens = ByteTokenizer().encode("中é 文")
    parts = ["中 1/3", "中 2/3", "中 3/3", "é 1/2", "é 2/2", "␣", "文 1/3", "文 2/3", "文 3/3"]
    assert labels(ByteTokenizer(), tokens) == parts


@pytest.mark.parametrize("text", ["中文 日本語 한국어 👍🏽", "שלום سلام naïve ก็", " the 中 cat"])
def test_labels_of_a_bpe_spell_the_text(text):
    tokens = SENTENCES.encode(text)
    words = labels(SENTENCES, tokens)
    assert len(words) == len(tokens)
    assert not any(word.startswith("#") or not word for word in words)
    whole = [word for word in words if not re.search(r" ([2-9])/[2-9]$", word)]
    spelled = "".join(re.sub(r" 1/[2-9]$", "", word) for word in whole)
    assert spelled.replace("␣", " ").strip() == text.strip()


def test_labels_of_bytes_that_form_no_character_are_their_numbers():
    tokens = np.array([195, 97, 184, 300, 228, 184])
    assert labels(ByteTokenizer(), tokens) == ["#195", "a", "#184", "<s>", "#228", "#184"]
