"""Conversion by table: from_torch inverts to_torch, and every mismatch is reported at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.errors import UserError
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, flat_params, init_params, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.weights import tables
from jaxformer.weights.convert import Row, from_torch, to_torch
from jaxformer.weights.families import bert, gpt2, marian
from jaxformer.weights.transforms import Halves, Transpose
from jaxformer.weights.twin import TWIN

CONFIG = GPT_PRESETS["toy"]
TABLES = {"twin": TWIN, "Hugging Face": gpt2.HUGGING_FACE}


@pytest.fixture(scope="module")
def params():
    return init_params(GPT, CONFIG, jax.random.key(0))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_there_and_back_changes_nothing(params, table):
    _, shapes = abstract_model(GPT, CONFIG)
    back = from_torch(to_torch(params, table), table, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_number_is_in_exactly_one_tensor(params, table):
    total = sum(array.size for array in to_torch(params, table).values())
    assert total == num_parameters(params)


@pytest.mark.parametrize("table", [TWIN, bert.HUGGING_FACE])
def test_berts_tables_go_there_and_back_and_hold_every_number(table):
    config = BERT_PRESETS["toy"]
    params = init_params(Bert, config, jax.random.key(0))
    tensors = to_torch(params, table)
    assert sum(array.size for array in tensors.values()) == num_parameters(params)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, table, params), params)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (TWIN, {}),
        (TWIN, {"share_embeddings": False, "norm_placement": "pre"}),
        (marian.HUGGING_FACE, {}),
        (tables.MARIAN_HUGGING_FACE, {}),
    ],
)
def test_the_transformers_tables_go_there_and_back_and_hold_every_number(table, options):
    config = dataclasses.replace(TRANSFORMER_PRESETS["toy"], **options)
    params = init_params(Transformer, config, jax.random.key(0))
    tensors = to_torch(params, table)
    assert sum(array.size for array in tensors.values()) == num_parameters(params)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, table, params), params)


def test_all_that_does_not_match_is_reported_together(params):
    _, shapes = abstract_model(GPT, CONFIG)
    arrays = to_torch(params, TWIN)
    del arrays["norm.bias"]
    arrays["lm_head.weight"] = np.zeros((2, 2))
    arrays["embed.weight"] = arrays["embed.weight"][:-1]
    arrays["blocks.1.mlp.up.weight"] = arrays["blocks.1.mlp.up.weight"].T
    with pytest.raises(UserError) as refusal:
        from_torch(arrays, TWIN, shapes)
    first, *lines = str(refusal.value).splitlines()
    assert "in 4 places (1 look transposed)" in first
    assert sorted(line.strip() for line in lines) == [
        "blocks/1/mlp/up/kernel: blocks.1.mlp.up.weight is (32, 128), not (128, 32)",
        "embed/embedding: embed.weight is (63, 32), not (64, 32)",
        "lm_head.weight has no leaf",
        "norm/bias needs norm.bias, which is missing",
    ]


def test_what_all_problems_have_in_common_is_said_once(params):
    tensors = to_torch(params, gpt2.HUGGING_FACE)
    turned = {name: array.T for name, array in tensors.items() if ".c_fc." in name}
    rounded = {name: array.astype(np.int8) for name, array in tensors.items() if "ln_1" in name}
    with pytest.raises(UserError) as refusal:
        from_torch(tensors | turned | rounded, gpt2.HUGGING_FACE, params)
    first, *lines = str(refusal.value).splitlines()
    assert "2 look transposed" in first
    assert "4 are int8" in first
    assert len(lines) == 6
    with pytest.raises(UserError, match="no tensor has a name of this model") as refusal:
        from_torch({"layers.0.q": tensors["transformer.ln_f.bias"]}, TWIN, params)
    assert len(str(refusal.value).splitlines()) == 2


def hugging_face(family):
    """Parameters, tensors, table and model, of a family."""
    model, config, table = {
        "gpt2": (GPT, CONFIG, gpt2.HUGGING_FACE),
        "bert": (Bert, BERT_PRESETS["toy"], bert.HUGGING_FACE),
        "marian": (Transformer, TRANSFORMER_PRESETS["toy"], marian.HUGGING_FACE),
    }[family]
    params = init_params(model, config, jax.random.key(1))
    return params, to_torch(params, table), table


def renamed(tensors, before, after):
    return {name.replace(before, after): array for name, array in tensors.items()}


def again(tensors, name, *others):
    """The tensors with one of them by further names too."""
    return tensors | dict.fromkeys(others, tensors[name])


EYE = np.eye(3, dtype=np.float32)
WTE, SHARED = "transformer.wte.weight", "model.shared.weight"
HEAD = "cls.predictions.decoder"
WORDS, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
LAYOUTS = {
    "gpt2": [
        lambda t: renamed(t, "transformer.", ""),
        lambda t: renamed(t, "transformer.", "") | {"h.1.attn.bias": np.tri(3)[None, None] > 0},
        lambda t: t | {"transformer.h.0.attn.masked_bias": np.float32(-1e4)},
        lambda t: again(t, WTE, "lm_head.weight"),
        lambda t: renamed(t, "transformer.wte", "lm_head"),
        lambda t: {
            f"module.{name}": array for name, array in again(t, WTE, "lm_head.weight").items()
        },
        lambda t: renamed(t, "transformer.", "_orig_mod.transformer."),
    ],
    "bert": [
        lambda t: t | {"bert.pooler.dense.weight": EYE, "cls.seq_relationship.bias": EYE[0]},
        lambda t: t | {"cls.seq_relationship.weight": EYE},
        lambda t: t | {"bert.embeddings.position_ids": np.arange(3)[None]},
        lambda t: renamed(renamed(t, "Norm.weight", "Norm.gamma"), "Norm.bias", "Norm.beta"),
        lambda t: again(again(t, WORDS, f"{HEAD}.weight"), BIAS, f"{HEAD}.bias"),
        lambda t: renamed(t, "bert.", "") | {"pooler.dense.bias": EYE[0]},
    ],
    "marian": [
        lambda t: t | {"final_logits_bias": np.zeros((1, 64), np.float32)},
        lambda t: again(t, SHARED, "lm_head.weight", "model.encoder.embed_tokens.weight"),
        lambda t: renamed(t, "model.shared", "model.decoder.embed_tokens"),
        lambda t: t | {"model.encoder.embed_positions.weight": EYE},
    ],
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_files_of_every_layout_of_a_family_are_read(family):
    params, tensors, table = hugging_face(family)
    for number, layout in enumerate(LAYOUTS[family]):
        found = from_torch(layout(tensors), table, params)
        assert layout(tensors).keys() != tensors.keys(), number
        jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("family", "name", "tensor", "said"),
    [
        ("gpt2", "lm_head.weight", np.ones((64, 32), np.float32), "lm_head.weight"),
        ("gpt2", "wte.weight", np.ones((64, 32), np.float32), "wte.weight has no leaf"),
        ("gpt2", "transformer.h.0.crossattention.bias", EYE, "crossattention.bias has no leaf"),
        ("bert", "cls.predictions.decoder.bias", np.full(64, np.nan, np.float32), "decoder.bias"),
        ("bert", "classifier.weight", EYE, "classifier.weight has no leaf"),
        ("marian", "final_logits_bias", np.ones((1, 64), np.float32), "final_logits_bias"),
    ],
)
def test_a_tensor_that_the_model_cannot_do_without_is_refused(family, name, tensor, said):
    params, tensors, table = hugging_face(family)
    with pytest.raises(UserError, match="in 1 places") as refusal:
        from_torch(tensors | {name: tensor}, table, params)
    assert said in str(refusal.value)


def test_only_floating_point_tensors_are_weights(params):
    tensors = to_torch(params, TWIN)
    for kind in (np.float16, np.float32, np.float64, jnp.bfloat16, jnp.float8_e4m3fn):
        from_torch({name: array.astype(kind) for name, array in tensors.items()}, TWIN, params)
    for kind in (np.int8, np.uint8, np.int64, np.bool_, np.complex64):
        changed = tensors | {"norm.bias": tensors["norm.bias"].astype(kind)}
        with pytest.raises(UserError, match=f"norm.bias is {np.dtype(kind).name}"):
            from_torch(changed, TWIN, params)


def test_pytorchs_tensors_are_read_whatever_their_type_and_whether_or_not_they_learn(params):
    expected = from_torch(to_torch(params, TWIN), TWIN, params)
    tensors = {name: torch.tensor(array) for name, array in to_torch(params, TWIN).items()}
    learning = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    found = from_torch(learning, TWIN, params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        found = from_torch({name: p.to(kind) for name, p in learning.items()}, TWIN, params)
        rounded = tensors["embed.weight"].to(kind).float().numpy()
        np.testing.assert_array_equal(found["embed"]["embedding"], rounded)
    for bad in (tensors["norm.bias"].to("meta"), tensors["norm.bias"].to_sparse()):
        with pytest.raises(UserError, match=r"norm.bias is no tensor with values"):
            from_torch(tensors | {"norm.bias": bad}, TWIN, params)


def test_leaves_without_a_row_are_reported_in_both_directions(params):
    table = [row for row in gpt2.HUGGING_FACE if not row.torch.startswith("transformer.ln_f")]
    for convert in (
        lambda: to_torch(params, table),
        lambda: from_torch(to_torch(params, gpt2.HUGGING_FACE), table, params),
    ):
        with pytest.raises(UserError, match="norm/bias has no row") as refusal:
            convert()
        assert "norm/scale has no row" in str(refusal.value)


def test_a_tensor_of_another_rank_is_reported(params):
    arrays = to_torch(params, gpt2.HUGGING_FACE)
    arrays["transformer.h.0.attn.c_attn.weight"] = np.asarray(1.0, np.float32)
    arrays["transformer.h.0.attn.c_attn.bias"] = np.zeros(97)
    with pytest.raises(UserError, match="in 2 places"):
        from_torch(arrays, gpt2.HUGGING_FACE, params)


def test_a_missing_part_is_reported_in_both_directions(params):
    attention = params["blocks"][0]["attention"]
    less = {name: part for name, part in attention.items() if name != "key"}
    whole, params = params, {"blocks": {0: {"attention": less}}}
    said = "h.0.attn.c_attn.bias is made of 3 leaves but 2 are there"
    with pytest.raises(UserError, match=said):
        to_torch(params, gpt2.HUGGING_FACE)
    with pytest.raises(UserError, match=said):
        from_torch(to_torch(whole, gpt2.HUGGING_FACE), gpt2.HUGGING_FACE, params)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_any_transposition_is_undone(shape, seed, data):
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    leaf = np.random.default_rng(seed).standard_normal(shape)
    table = [Row("a/*/b", "x.*.y", (Transpose(axes),))]
    arrays = to_torch({"a": {"k": {"b": leaf}}}, table)
    np.testing.assert_array_equal(arrays["x.k.y"], leaf.transpose(axes))
    back = from_torch(arrays, table, {"a": {"k": {"b": leaf}}})
    np.testing.assert_array_equal(back["a"]["k"]["b"], leaf)


def test_types_are_those_asked_for(params):
    halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float16), params)
    back = from_torch(to_torch(params, TWIN), TWIN, halves)
    assert {leaf.dtype for leaf in flat_params(back).values()} == {np.dtype(np.float16)}


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 9),
)
def test_leaves_of_any_sizes_are_joined_in_the_order_of_the_row(sizes, axis, seed):
    """Transforms act on each leaf before it is joined."""
    rng = np.random.default_rng(seed)
    shapes = [(size, 3) if axis == 1 else (3, size) for size in sizes]  # transposed by the row
    leaves = {f"part{i}": rng.standard_normal(shape) for i, shape in enumerate(shapes)}
    row = Row(tuple(f"m/{name}/w" for name in leaves), "x.w", (Halves(0), Transpose((1, 0))), axis)
    params = {"m": {name: {"w": leaf} for name, leaf in reversed(leaves.items())}}
    tensors = to_torch(params, [row])
    expected = [Halves(0).forward(leaf).T for leaf in leaves.values()]
    np.testing.assert_array_equal(tensors["x.w"], np.concatenate(expected, axis))
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, [row], params), params)


def test_the_twin_rule_keeps_the_path_however_deep():
    params = {
        "kernel": np.ones((2, 3)),
        "a": {"0": {"b": {"scale": np.ones(4)}}, "bias": np.ones(1)},
    }
    shapes = {name: array.shape for name, array in to_torch(params, TWIN).items()}
    assert shapes == {"weight": (3, 2), "a.0.b.weight": (4,), "a.bias": (1,)}


def test_the_former_names_mean_what_they_meant():
    assert tables.GPT is tables.TRANSFORMER is tables.BERT is TWIN
    assert tables.GPT2_HUGGING_FACE is gpt2.HUGGING_FACE
    assert tables.BERT_HUGGING_FACE is bert.HUGGING_FACE
    params = init_params(Transformer, TRANSFORMER_PRESETS["toy"], jax.random.key(0))
    tensors = to_torch(params, tables.MARIAN_HUGGING_FACE)
    np.testing.assert_array_equal(tensors["model.shared.weight"], params["embed"]["embedding"])
    assert tensors.keys() == to_torch(params, marian.HUGGING_FACE).keys()
