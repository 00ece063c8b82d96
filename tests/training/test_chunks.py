"""A loss in chunks is the plain loss, and no array holds the logits of all tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.models.functional import flat_params
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.training import chunks, objectives
from jaxformer.training.chunks import LARGEST_CHUNK, MOST_CHUNKS, chunk_length, cut, in_chunks
from jaxformer.training.loss import cross_entropy
from tests.objectives import MODELS, B, L, V, gradient

PRIME = 67
"""A vocabulary, to tell logits from other arrays."""
IN_CHUNKS = 3 * B * V
"""As the largest chunk, it cuts the 16 tokens of a row into chunks of 2."""


@pytest.fixture
def cut_small(monkeypatch):
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", IN_CHUNKS)


def arrays(jaxpr) -> set[tuple]:
    """The shapes of all arrays that a program makes, in its loops and calls too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {getattr(variable.aval, "shape", ()) for variable in equation.outvars}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found |= arrays(inner) if hasattr(inner, "eqns") else set()
    return found


def logits_of(name: str) -> int:
    """The largest number of logits that one array of a model's loss and gradient holds."""
    function, *arguments = gradient(name, num_layers=1, dtype="float32", vocab_size=PRIME)
    shapes = arrays(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(math.prod(shape) for shape in shapes if PRIME in shape and shape[0] != PRIME)


@pytest.mark.parametrize("name", MODELS)
def test_no_array_holds_all_logits_forwards_or_backwards(name, monkeypatch):
    assert logits_of(name) == B * L * PRIME
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", IN_CHUNKS)
    assert logits_of(name) < B * L * PRIME


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("gpt", objectives.next_token_accuracy),
        ("transformer", objectives.translation_accuracy),
        ("transformer", objectives.translation_cross_entropy),
    ],
)
def test_validation_holds_no_more(name, objective, monkeypatch):
    model, preset, _, batch = MODELS[name]
    monkeypatch.setitem(MODELS, name, (model, preset, objective, batch))
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", IN_CHUNKS)
    assert logits_of(name) < B * L * PRIME


@pytest.mark.parametrize(
    "name", ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODELS)[1:])]
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(name, monkeypatch):
    with arithmetic("float64"):
        plain, params, batch = gradient(name, num_layers=1)
        total, grads = plain(params, batch)
        monkeypatch.setattr(chunks, "LARGEST_CHUNK", IN_CHUNKS)
        chunked, *_ = gradient(name, num_layers=1)
        found, found_grads = chunked(params, batch)
    bound = BOUNDS["layer", "float64"]
    assert relative_error(np.asarray(found), np.asarray(total)) <= bound
    expected = flat_params(grads)
    for path, leaf in flat_params(found_grads).items():
        zero = path.endswith(ZERO_GRADIENT)
        assert relative_error(np.asarray(leaf), np.asarray(expected[path]), zero) <= bound, path


def test_one_chunk_is_the_plain_loss():
    hidden, head = jnp.ones((B, L, 8)), jnp.ones((8, V))
    targets, mask = jnp.ones((B, L), int), jnp.ones((B, L), bool)

    def plain(hidden):
        return cross_entropy(hidden @ head, targets, mask)

    def chunked(hidden):
        return in_chunks(cross_entropy, lambda h: h @ head, hidden, targets, mask)

    assert str(jax.make_jaxpr(chunked)(hidden)) == str(jax.make_jaxpr(plain)(hidden))


def test_a_multiple_of_the_loss_has_the_multiple_of_the_gradient(cut_small):
    head = jnp.asarray(np.random.default_rng(0).standard_normal((8, V)), jnp.float32)
    hidden, targets, mask = jnp.ones((B, L, 8)), jnp.ones((B, L), int), jnp.ones((B, L), bool)

    def total(head, scale):
        return scale * in_chunks(cross_entropy, lambda h: h @ head, hidden, targets, mask)[0]

    once, thrice = jax.grad(total)(head, 1.0), jax.grad(total)(head, 3.0)
    np.testing.assert_allclose(thrice, 3.0 * once, rtol=1e-6)


def test_bfloat16_logits_leave_the_gradient_of_the_head_in_float32(cut_small):
    """Summed over chunks in float32, it is no further from the truth than in one product."""
    rng = np.random.default_rng(0)
    hidden, embedding = rng.standard_normal((B, L, 8)), rng.standard_normal((V, 8))
    targets, mask = jnp.asarray(rng.integers(0, V, (B, L))), jnp.ones((B, L), bool)

    def grad(form, dtype):
        def total(embedding):
            logits = lambda h: h @ embedding.astype(dtype).T  # noqa: E731
            return form(logits, jnp.asarray(hidden, dtype))[0]

        return jax.grad(total)(jnp.asarray(embedding, jnp.float32))

    def chunked(logits, hidden):
        return in_chunks(cross_entropy, logits, hidden, targets, mask)

    def plain(logits, hidden):
        return cross_entropy(logits(hidden), targets, mask)

    found = grad(chunked, jnp.bfloat16)
    assert found.dtype == jnp.float32
    truth = np.asarray(grad(plain, jnp.float32))
    errors = [np.abs(g - truth).max() for g in (found, grad(plain, jnp.bfloat16))]
    assert errors[0] <= 1.25 * errors[1]


@given(rows=st.integers(1, 2**12), length=st.integers(1, 2**12), vocabulary=st.integers(1, 2**17))
def test_chunks_are_small_or_many(rows, length, vocabulary):
    cut_to = chunk_length(rows, length, vocabulary)
    number = -(-length // cut_to)
    assert 1 <= cut_to <= length
    assert number <= MOST_CHUNKS
    assert (
        rows * cut_to * vocabulary <= LARGEST_CHUNK + rows * vocabulary or number > MOST_CHUNKS // 2
    )
    assert cut_to == length or rows * length * vocabulary > LARGEST_CHUNK


@given(rows=st.integers(1, 4), length=st.integers(1, 40), data=st.data())
def test_chunks_are_the_tokens_in_order_and_then_zeros(rows, length, data):
    of = data.draw(st.integers(1, length))
    x = 1 + np.arange(rows * length * 2).reshape(rows, length, 2)
    found = cut(jnp.asarray(x), of)
    assert found.shape[1:] == (rows, of, 2)
    joined = np.concatenate(list(found), axis=1)
    np.testing.assert_array_equal(joined[:, :length], x)
    assert not joined[:, length:].any()
    assert joined.shape[1] - length < of
