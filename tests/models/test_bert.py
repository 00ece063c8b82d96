"""BERT without a twin: initialisation, masking by gradients, dropout, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import BERT_PRESETS
from jaxformer.errors import UserError
from jaxformer.layers.dropout import fold_path, keep_mask, step_key
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, flat_params, init_params, merge

TOY = dataclasses.replace(BERT_PRESETS["toy"], num_segments=3, init_std=0.3)
TOKENS = jnp.arange(10)[None] + jnp.zeros((2, 1), int)


@pytest.fixture(scope="module")
def toy():
    return abstract_model(Bert, TOY)[0], init_params(Bert, TOY, jax.random.key(0))


def test_the_largest_model_gives_logits_of_every_token_and_position():
    config = BERT_PRESETS["bert-large"]
    graphdef, shapes = abstract_model(Bert, config)
    tokens = jax.ShapeDtypeStruct((3, 512), "int32")
    out = jax.eval_shape(lambda p, t: merge(graphdef, p)(t), shapes, tokens)
    assert out.shape == (3, 512, 30_522)


def test_logits_have_the_type_of_the_model():
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TOY, dtype=dtype)
        graphdef, shapes = abstract_model(Bert, config)
        assert jax.eval_shape(lambda p, g=graphdef: merge(g, p)(TOKENS), shapes).dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_all_kernels_and_embeddings_start_with_one_standard_deviation():
    config = dataclasses.replace(
        BERT_PRESETS["toy"], width=128, mlp_width=256, num_layers=3, vocab_size=500
    )
    for path, leaf in flat_params(init_params(Bert, config, jax.random.key(1))).items():
        values = np.asarray(leaf)
        if path.endswith("scale"):
            assert (values == 1).all(), path
        elif path.endswith("bias"):
            assert (values == 0).all(), path
        else:
            # Five standard errors of a standard deviation.
            assert values.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * values.size)), path


def gradients_of_embeddings(toy, valid=None, row=0, position=5):
    """Gradient of one place's logits with respect to the embeddings, (B, L, D)."""
    graphdef, params = toy

    def logits_of(shift):
        class Shifted(Bert):
            def embeddings(self, *args):
                return Bert.embeddings(self, *args) + shift

        model = merge(graphdef, params)
        model.__class__ = Shifted
        return (model(TOKENS, None, valid)[row, position] ** 2).sum()

    return np.asarray(jax.grad(logits_of)(jnp.zeros((2, 10, TOY.width))))


def test_gradients_come_from_both_sides_and_from_no_other_row(toy):
    grads = gradients_of_embeddings(toy)
    assert (np.abs(grads[0]).sum(axis=-1) > 0).all()
    assert (grads[1] == 0).all()


def test_no_gradient_comes_from_padding(toy):
    valid = jnp.ones((2, 10), bool).at[0, 2:4].set(False).at[0, 8:].set(False)
    grads = gradients_of_embeddings(toy, valid)
    assert (grads[0, [2, 3, 8, 9]] == 0).all()
    assert (np.abs(grads[0, [0, 1, 4, 5, 6, 7]]).sum(axis=-1) > 0).all()


def test_padding_tokens_change_no_other_logits(toy):
    model, valid = merge(*toy), jnp.arange(10)[None] < jnp.array([[10], [6]])
    filled = jnp.where(valid, TOKENS, 63)
    logits, other = model(TOKENS, None, valid), model(filled, None, valid)
    np.testing.assert_array_equal(logits[valid], other[valid])
    assert not np.array_equal(logits, other)


def test_without_segments_all_tokens_are_in_the_first(toy):
    model = merge(*toy)
    first, second = jnp.zeros_like(TOKENS), jnp.ones_like(TOKENS)
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS, first))
    assert not np.allclose(model(TOKENS), model(TOKENS, second))


def normalised(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)


def test_embeddings_are_the_norm_of_the_sum_of_three_rows(toy):
    segments = np.array([[0, 1, 2, 2, 1]])
    tokens = np.array([[5, 60, 5, 0, 7]])
    words, positions, kinds = (
        np.asarray(toy[1][name]["embedding"], np.float64)
        for name in ("embed", "positions", "segments")
    )
    found = merge(*toy).embeddings(jnp.asarray(tokens), jnp.asarray(segments))
    expected = normalised(words[tokens] + positions[:5] + kinds[segments])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_bias_of_a_token_is_added_to_its_logit(toy):
    graphdef, params = toy
    bias = jnp.arange(64.0)
    raised = {**params, "head": {**params["head"], "bias": bias}}
    np.testing.assert_allclose(
        merge(graphdef, raised)(TOKENS) - merge(graphdef, params)(TOKENS),
        jnp.broadcast_to(bias, (2, 10, 64)),
        atol=1e-4,
    )


def test_dropout_can_be_recomputed_from_key_path_and_step(toy, monkeypatch):
    graphdef = abstract_model(Bert, dataclasses.replace(TOY, dropout_rate=0.5))[0]
    key, seen = step_key(jax.random.key(7), 3), []

    def keep(key, rate, shape):
        seen.append((shape, np.asarray(keep_mask(key, rate, shape))))
        return seen[-1][1]

    monkeypatch.setattr("jaxformer.layers.dropout.keep_mask", keep)
    merge(graphdef, toy[1])(TOKENS, dropout_key=key)
    paths = [("embedding_dropout",)]
    for i in range(TOY.num_layers):
        paths += [
            ("encoder", "blocks", i, *path)
            for path in (("attention", "weights"), ("attention_dropout",), ("mlp_dropout",))
        ]
    assert len(seen) == len(paths)
    for path, (shape, mask) in zip(paths, seen, strict=True):
        np.testing.assert_array_equal(mask, keep_mask(fold_path(key, *path), 0.5, shape))


def test_a_text_longer_than_the_context_is_refused(toy):
    with pytest.raises(UserError, match="18 tokens exceed the context of 17"):
        merge(*toy)(jnp.zeros((1, 18), int))


def test_the_head_is_dense_then_gelu_then_norm(toy):
    head = merge(*toy).head
    x = np.random.default_rng(3).standard_normal((1, 2, TOY.width))
    inner = x @ np.asarray(head.dense.kernel[...], np.float64)
    gelu = inner / 2 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    found = head(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, normalised(gelu), atol=1e-5)
