"""What an objective is summed over: padding counts for nothing, rows add up."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.batch import PairBatch
from jaxformer.config import TRANSFORMER_PRESETS
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.transformer import Transformer
from jaxformer.training.loss import cross_entropy, smoothed_cross_entropy
from jaxformer.training.objectives import translation, translation_cross_entropy

PADDING = 0
CONFIG = dataclasses.replace(TRANSFORMER_PRESETS["toy"], width=8, mlp_width=8, num_layers=1)
SMOOTHED = translation("cross_entropy", 0.1, PADDING)
KL = translation("kl", 0.1, PADDING)
OBJECTIVES = pytest.mark.parametrize(
    "objective", [SMOOTHED, KL, translation_cross_entropy], ids=["cross_entropy", "kl", "nats"]
)


@pytest.fixture(scope="module")
def model():
    graphdef, _ = abstract_model(Transformer, CONFIG)
    return merge(graphdef, init_params(Transformer, CONFIG, jax.random.key(0)))


def batch_of(rows: list[tuple[list[int], list[int]]], M: int = 5, L: int = 6) -> PairBatch:
    """Pairs of source and target, the start token 1 and the end token 2, padded to M and L."""
    B = len(rows)
    source, inputs, targets = (np.full((B, n), PADDING, np.int32) for n in (M, L, L))
    for i, (text, translated) in enumerate(rows):
        source[i, : len(text)] = text
        inputs[i, : len(translated) + 1] = [1, *translated]
        targets[i, : len(translated) + 1] = [*translated, 2]
    arrays = source, source != PADDING, inputs, targets, targets != PADDING
    return PairBatch(*map(jnp.asarray, arrays))


ROWS = [([3, 4, 5], [6, 7]), ([8], [9, 10, 11, 12]), ([5, 4, 3, 8, 7], [])]


def test_rows_add_up_however_they_are_padded(model):
    objectives = (SMOOTHED, KL, translation_cross_entropy)
    summed = jax.jit(lambda batch: [objective(model, batch, None) for objective in objectives])
    whole = summed(batch_of(ROWS))
    parts = [summed(batch_of([row], len(row[0]), len(row[1]) + 1)) for row in ROWS]
    for (total, count), *rows in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(total, sum(loss for loss, _ in rows), rtol=2e-6)
        assert count == sum(number for _, number in rows) == 3 + 5 + 1


@OBJECTIVES
def test_what_stands_in_the_padding_changes_nothing(model, objective):
    batch = batch_of(ROWS)
    other = batch._replace(
        source=jnp.where(batch.source_valid, batch.source, 13),
        inputs=jnp.where(batch.mask, batch.inputs, 14),
        targets=jnp.where(batch.mask, batch.targets, 15),
    )
    assert objective(model, other, None)[0] == objective(model, batch, None)[0]


def test_a_token_is_judged_by_source_and_earlier_targets_alone(model):
    """The gradient of one token's loss reaches no later input."""
    batch = batch_of([([3, 4, 5], [6, 7, 8, 9])])
    only = batch._replace(mask=jnp.arange(6)[None] == 2)
    first = translation_cross_entropy(model, only, None)[0]
    later = only._replace(inputs=only.inputs.at[0, 3:].set(20))
    earlier = only._replace(inputs=only.inputs.at[0, 2].set(20))
    assert translation_cross_entropy(model, later, None)[0] == first
    assert translation_cross_entropy(model, earlier, None)[0] != first


def test_each_kind_of_loss_is_its_own(model):
    batch = batch_of(ROWS)
    sums = [float(o(model, batch, None)[0]) for o in (SMOOTHED, KL, translation_cross_entropy)]
    assert len({round(x, 3) for x in sums}) == 3
    for kind in ("cross_entropy", "kl"):
        plain = translation(kind, 0.0, PADDING)(model, batch, None)[0]
        np.testing.assert_allclose(plain, sums[2], rtol=1e-6)


def test_dropout_follows_its_key(model):
    graphdef, _ = abstract_model(Transformer, dataclasses.replace(CONFIG, dropout_rate=0.5))
    dropping = merge(graphdef, init_params(Transformer, CONFIG, jax.random.key(0)))
    batch = batch_of(ROWS)
    losses = [float(SMOOTHED(dropping, batch, jax.random.key(i))[0]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert SMOOTHED(dropping, batch, None)[0] == SMOOTHED(model, batch, None)[0]


@pytest.mark.parametrize(
    "loss", [cross_entropy, functools.partial(smoothed_cross_entropy, smoothing=0.1)]
)
def test_the_gradient_of_a_loss_scatters_nothing_into_an_array_of_all_logits(loss):
    targets = jnp.array([[2, 0, 6]])

    def summed(logits):
        return loss(logits, targets, targets >= 0)[0]

    text = jax.jit(jax.grad(summed)).lower(jnp.ones((1, 3, 7))).as_text()
    assert "scatter" not in text
