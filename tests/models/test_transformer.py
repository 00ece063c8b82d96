"""The encoder-decoder without a twin: initialisation, masking by gradients, dropout, refusals."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import TRANSFORMER_PRESETS
from jaxformer.errors import UserError
from jaxformer.layers.dropout import fold_path, keep_mask, step_key
from jaxformer.models.functional import abstract_model, flat_params, init_params, merge
from jaxformer.models.transformer import Transformer

TOY = TRANSFORMER_PRESETS["toy"]
M, L = 7, 9
SOURCE = jnp.arange(2 * M).reshape(2, M)
TARGET = jnp.arange(2 * L).reshape(2, L) + 20


@pytest.fixture(scope="module")
def toy():
    return abstract_model(Transformer, TOY)[0], init_params(Transformer, TOY, jax.random.key(0))


def test_weights_start_by_xavier_and_embeddings_by_their_width():
    config = dataclasses.replace(
        TOY, width=256, mlp_width=1024, vocab_size=500, init_std=1 / 16, share_embeddings=False
    )
    for path, leaf in flat_params(init_params(Transformer, config, jax.random.key(1))).items():
        values = np.asarray(leaf)
        if path.endswith("scale"):
            assert (values == 1).all(), path
        elif path.endswith("bias"):
            assert (values == 0).all(), path
        elif path.endswith("kernel"):
            edge = math.sqrt(6 / sum(values.shape))
            assert 0.999 * edge < np.abs(values).max() <= edge, path
            assert values.std() == pytest.approx(edge / math.sqrt(3), rel=0.02), path
        else:
            # Five standard errors of a standard deviation.
            assert values.std() == pytest.approx(1 / 16, rel=5 / math.sqrt(2 * values.size)), path


def test_an_embedding_enters_with_the_size_of_its_position():
    # sqrt(D) N(0, 1/D) is of variance 1; a sinusoid's mean square is 1/2.
    config = dataclasses.replace(TOY, width=256, init_std=1 / 16)
    model = merge(
        abstract_model(Transformer, config)[0],
        init_params(Transformer, config, jax.random.key(0)),
    )
    rows = model.embed_tokens(model.embed, jnp.arange(16)[None], jnp.arange(16))
    assert float(jnp.square(rows).mean()) == pytest.approx(1.5, rel=0.1)


def gradients(read, source_valid=None, target_valid=None):
    """Size of the gradient of read(logits) at each embedded token of source and target.

    No token stands twice, so a row of an embedding has the gradient of one place.
    """
    config = dataclasses.replace(TOY, share_embeddings=False)
    graphdef, _ = abstract_model(Transformer, config)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (
            read(merge(graphdef, params)(SOURCE, TARGET, source_valid, target_valid)) ** 2
        ).sum()

    grads = gradient(init_params(Transformer, config, jax.random.key(0)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    source, target = grads["source_embed"]["embedding"], grads["target_embed"]["embedding"]
    return {
        "source": np.abs(source[SOURCE]).sum(axis=-1),
        "target": np.abs(target[TARGET]).sum(axis=-1),
    }


def test_no_gradient_comes_from_the_targets_future_or_from_another_row():
    grads = gradients(lambda logits: logits[0, 5])
    assert (grads["target"][0, 6:] == 0).all()
    assert (grads["target"][1] == 0).all()
    assert (grads["source"][1] == 0).all()
    assert (grads["target"][0, :6] > 0).all()
    assert (grads["source"][0] > 0).all()


def test_no_gradient_comes_from_padding():
    source_valid = jnp.ones((2, M), bool).at[0, 3:5].set(False)
    target_valid = jnp.ones((2, L), bool).at[0, 1].set(False)
    grads = gradients(lambda logits: logits[0, 5], source_valid, target_valid)
    np.testing.assert_array_equal(grads["source"][0] > 0, source_valid[0])
    np.testing.assert_array_equal(grads["target"][0, :6] > 0, target_valid[0, :6])


def test_what_stands_at_padding_changes_nothing(toy):
    source_valid = jnp.arange(M) < jnp.array([[4], [M]])
    target_valid = jnp.arange(L) < jnp.array([[6], [L]])
    model = merge(*toy)
    other_source = jnp.where(source_valid, SOURCE, 63)
    other_target = jnp.where(target_valid, TARGET, 63)
    one = model(SOURCE, TARGET, source_valid, target_valid)
    other = model(other_source, other_target, source_valid, target_valid)
    np.testing.assert_array_equal(one[target_valid], other[target_valid])


def test_a_padded_row_is_the_row_alone(toy):
    model = merge(*toy)
    source_valid = jnp.arange(M) < jnp.array([[4], [M]])
    padded = model(SOURCE, TARGET, source_valid)
    np.testing.assert_allclose(padded[:1], model(SOURCE[:1, :4], TARGET[:1]), rtol=0, atol=2e-6)


def test_a_source_of_padding_alone_gives_no_nan(toy):
    valid = jnp.ones((2, M), bool).at[1].set(False)
    assert np.isfinite(merge(*toy)(SOURCE, TARGET, valid)).all()
    read = gradients(lambda logits: logits[1], valid)  # finite, it says
    assert (read["source"] == 0).all()
    assert (read["target"][1] > 0).all()


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_cached_pieces_are_the_whole(placement):
    config = dataclasses.replace(TOY, norm_placement=placement)
    graphdef, _ = abstract_model(Transformer, config)
    model = merge(graphdef, init_params(Transformer, config, jax.random.key(0)))
    valid = jnp.arange(M) < jnp.array([[M], [3]])
    caches = model.init_cache(model.encode(SOURCE, valid), L)
    pieces = []
    for start, end in itertools.pairwise([0, 1, 2, 5, 8, L]):
        positions = jnp.arange(start, end) + jnp.zeros((2, 1), int)
        piece = TARGET[:, start:end]
        hidden, caches = model.hidden(piece, None, None, valid, caches=caches, positions=positions)
        pieces.append(model.logits(hidden))
    whole = model(SOURCE, TARGET, valid)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=0, atol=5e-6)


def test_dropout_can_be_recomputed_from_key_path_and_step(toy, monkeypatch):
    config = dataclasses.replace(TOY, dropout_rate=0.5)
    graphdef, key = abstract_model(Transformer, config)[0], step_key(jax.random.key(7), 3)
    seen = []

    def keep(key, rate, shape):
        seen.append((shape, np.asarray(keep_mask(key, rate, shape))))
        return keep_mask(key, rate, shape)

    monkeypatch.setattr("jaxformer.layers.dropout.keep_mask", keep)
    merge(graphdef, toy[1])(SOURCE, TARGET, dropout_key=key)
    layers = range(TOY.num_layers)
    encoder = [("source_embedding_dropout",)]
    encoder += [
        ("encoder", "blocks", i, name)
        for i in layers
        for name in ("attention_dropout", "mlp_dropout")
    ]
    decoder = [("target_embedding_dropout",)]
    decoder += [
        ("decoder", "blocks", i, f"{name}_dropout")
        for i in layers
        for name in ("self_attention", "cross_attention", "mlp")
    ]
    expected = [((2, M, TOY.width), path) for path in encoder]
    expected += [((2, L, TOY.width), path) for path in decoder]
    assert len(seen) == len(expected)
    for (shape, mask), (size, path) in zip(seen, expected, strict=True):
        assert shape == size, path
        np.testing.assert_array_equal(mask, keep_mask(fold_path(key, *path), 0.5, shape))


def test_attention_weights_are_dropped_only_by_config(toy):
    key = jax.random.key(0)
    said = []
    for attention_dropout in (False, True):
        config = dataclasses.replace(TOY, dropout_rate=0.5, attention_dropout=attention_dropout)
        graphdef = abstract_model(Transformer, config)[0]
        said.append(merge(graphdef, toy[1])(SOURCE, TARGET, dropout_key=key))
    assert not np.array_equal(*said)
    np.testing.assert_array_equal(
        merge(graphdef, toy[1])(SOURCE, TARGET), merge(*toy)(SOURCE, TARGET)
    )


@pytest.mark.parametrize("long", ["source", "target"])
def test_a_text_longer_than_the_context_is_refused(toy, long):
    texts = {"source": SOURCE, "target": TARGET} | {long: jnp.zeros((2, 18), int)}
    with pytest.raises(UserError, match="18 tokens exceed the context of 17"):
        merge(*toy)(texts["source"], texts["target"])
