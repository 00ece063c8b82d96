"""Each loss against its definition in PyTorch, not against its twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.parity.bounds import BOUNDS, UNITS_IN_LAST_PLACE
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import (
    accuracy,
    cross_entropy,
    label_smoothing_kl,
    smoothed_cross_entropy,
)

SHAPE = (3, 5)
SEEDS = st.integers(0, 2**32 - 1)
SMOOTHINGS = st.sampled_from([0.0, 0.1, 0.4])
VOCAB_SIZES = st.sampled_from([3, 7, 30])


def draw(seed: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Logits, targets that are padding where the mask is False, the mask and the padding id."""
    rng = np.random.default_rng(seed)
    padding = int(rng.integers(vocab_size))
    logits = 3.0 * rng.standard_normal((*SHAPE, vocab_size))
    mask = rng.random(SHAPE) < 0.7
    real = rng.integers(0, vocab_size - 1, SHAPE)
    targets = np.where(mask, real + (real >= padding), padding)
    return logits, targets, mask, padding


def ours(loss, logits, targets, mask, *options):
    """Sum, gradient and count in float64."""
    with arithmetic("float64"):
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        arrays = (jnp.asarray(targets), jnp.asarray(mask))
        (total, count), grad = value_and_grad(jnp.asarray(logits), *arrays, *options)
        return float(total), np.asarray(grad), int(count)


def with_grad(logits, function):
    """PyTorch's value and gradient."""
    tensor = torch.tensor(logits, requires_grad=True)
    total = function(tensor)
    total.backward()
    return float(total.detach()), tensor.grad.numpy()


BOUND = BOUNDS["layer", "float64"]


def assert_equal(found, expected, mask):
    assert relative_error(np.array(found[0]), np.array(expected[0])) <= BOUND
    assert relative_error(found[1], expected[1]) <= BOUND
    assert found[2] == mask.sum()


@given(seed=SEEDS, vocab_size=VOCAB_SIZES, smoothing=SMOOTHINGS)
def test_smoothed_cross_entropy_is_torchs_label_smoothing(seed, vocab_size, smoothing):
    logits, targets, mask, padding = draw(seed, vocab_size)
    expected = with_grad(
        logits,
        lambda x: torch.nn.functional.cross_entropy(
            x.flatten(0, 1),
            torch.tensor(targets).flatten(),
            label_smoothing=smoothing,
            ignore_index=padding,
            reduction="sum",
        ),
    )
    assert_equal(ours(smoothed_cross_entropy, logits, targets, mask, smoothing), expected, mask)


@given(seed=SEEDS, vocab_size=VOCAB_SIZES, smoothing=SMOOTHINGS)
def test_label_smoothing_kl_is_the_divergence_from_its_written_out_distribution(
    seed, vocab_size, smoothing
):
    logits, targets, mask, padding = draw(seed, vocab_size)
    true = torch.zeros(*SHAPE, vocab_size, dtype=torch.float64)
    for row, place in np.argwhere(mask):
        for token in range(vocab_size):
            if token == targets[row, place]:
                true[row, place, token] = 1 - smoothing
            elif token != padding:
                true[row, place, token] = smoothing / (vocab_size - 2)
    ones = true.sum(-1)[torch.tensor(mask)].numpy()
    np.testing.assert_allclose(ones, 1.0, rtol=UNITS_IN_LAST_PLACE * np.finfo(float).eps)
    divergence = torch.nn.KLDivLoss(reduction="sum")
    expected = with_grad(logits, lambda x: divergence(x.log_softmax(-1), true))
    found = ours(label_smoothing_kl, logits, targets, mask, smoothing, padding)
    assert_equal(found, expected, mask)


@given(seed=SEEDS, vocab_size=VOCAB_SIZES)
def test_accuracy_counts_the_targets_whose_logit_is_the_largest(seed, vocab_size):
    logits, targets, mask, _ = draw(seed, vocab_size)
    right = 0
    for row, place in np.argwhere(mask):
        others = np.delete(logits[row, place], targets[row, place])
        right += bool((logits[row, place, targets[row, place]] > others).all())
    total, grad, count = ours(accuracy, logits, targets, mask)
    assert (total, count) == (right, mask.sum())
    assert not grad.any()


@pytest.mark.parametrize(
    ("loss", "options"), [(smoothed_cross_entropy, (0.0,)), (label_smoothing_kl, (0.0, 2))]
)
def test_without_smoothing_it_is_the_cross_entropy(loss, options):
    logits, _, mask, _ = draw(0, 7)
    targets = np.random.default_rng(1).integers(3, 7, SHAPE)
    found = ours(loss, logits, targets, mask, *options)
    assert_equal(found, ours(cross_entropy, logits, targets, mask), mask)


@given(seed=SEEDS, vocab_size=st.sampled_from([4, 30]))
def test_the_divergence_and_its_gradient_are_zero_if_the_model_predicts_the_smoothed_truth(
    seed, vocab_size
):
    _, targets, mask, padding = draw(seed, vocab_size)
    truth = np.full((*SHAPE, vocab_size), 0.1 / (vocab_size - 2))
    np.put_along_axis(truth, targets[..., None], 0.9, axis=-1)
    truth[..., padding] = 1e-300
    total, grad, _ = ours(label_smoothing_kl, np.log(truth), targets, mask, 0.1, padding)
    assert relative_error(np.array(total), np.zeros(())) <= BOUND
    assert relative_error(grad, np.zeros_like(grad)) <= BOUND


@pytest.mark.parametrize(
    ("loss", "options"),
    [(cross_entropy, ()), (smoothed_cross_entropy, (0.1,)), (label_smoothing_kl, (0.1, 0))],
)
def test_bfloat16_logits_are_summed_in_float32(loss, options):
    logits = jnp.asarray(draw(0, 7)[0], jnp.bfloat16)
    targets, mask = jnp.full(SHAPE, 3), jnp.ones(SHAPE, bool)
    total, count = loss(logits, targets, mask, *options)
    assert (total.dtype, count.dtype) == (jnp.float32, jnp.int32)
    assert total == loss(logits.astype(jnp.float32), targets, mask, *options)[0]
