"""GPT without a twin: initialisation, causality by gradients, dropout, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPT_PRESETS
from jaxformer.errors import UserError
from jaxformer.layers.dropout import fold_path, keep_mask, step_key
from jaxformer.models.functional import abstract_model, flat_params, init_params, merge
from jaxformer.models.gpt import GPT

TOY = GPT_PRESETS["toy"]


@pytest.fixture(scope="module")
def toy():
    return abstract_model(GPT, TOY)[0], init_params(GPT, TOY, jax.random.key(0))


def test_weights_start_as_gpt2s():
    config = dataclasses.replace(TOY, width=256, mlp_width=1024, num_layers=3, vocab_size=500)
    params = flat_params(init_params(GPT, config, jax.random.key(1)))
    for path, leaf in params.items():
        values = np.asarray(leaf)
        if path.endswith("scale"):
            assert (values == 1).all(), path
        elif path.endswith("bias"):
            assert (values == 0).all(), path
        else:
            into_the_stream = path.endswith(("out/kernel", "down/kernel"))
            std = 0.02 / math.sqrt(2 * 3) if into_the_stream else 0.02
            # Five standard errors of a standard deviation and of a mean.
            assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.size)), path
            assert abs(values.mean()) < 5 * std / math.sqrt(values.size), path


def test_no_two_leaves_start_equal():
    leaves = flat_params(init_params(GPT, TOY, jax.random.key(0)))
    kernels = [np.asarray(leaf).ravel() for path, leaf in leaves.items() if "kernel" in path]
    firsts = {float(kernel[0]) for kernel in kernels}
    assert len(firsts) == len(kernels)


def input_gradients(toy, mask=None, row=0, position=5):
    """Gradient of one position's logits with respect to each token's embedding, (L, D)."""
    graphdef, params = toy
    tokens = jnp.arange(10)[None] + jnp.zeros((2, 1), int)

    def logits_of(shift):
        model = merge(graphdef, params)
        table = model.embed

        class Shifted:
            attend = staticmethod(table.attend)

            def __call__(self, tokens):
                return table(tokens) + shift

        model.embed = Shifted()
        return (model(tokens, mask)[row, position] ** 2).sum()

    return np.asarray(jax.grad(logits_of)(jnp.zeros((2, 10, TOY.width))))


def test_no_gradient_comes_from_the_future_or_from_another_row(toy):
    grads = input_gradients(toy)
    assert (grads[0, 6:] == 0).all()
    assert (grads[1] == 0).all()
    assert (np.abs(grads[0, :6]).sum(axis=-1) > 0).all()


def test_no_gradient_comes_from_padding(toy):
    valid = jnp.ones((2, 10), bool).at[0, 2:4].set(False)
    grads = input_gradients(toy, valid[:, None, None, :])
    assert (grads[0, 2:4] == 0).all()
    assert (np.abs(grads[0, [0, 1, 4, 5]]).sum(axis=-1) > 0).all()


def test_dropout_can_be_recomputed_from_key_path_and_step(toy):
    graphdef, params = abstract_model(GPT, TOY)[0], toy[1]
    config = dataclasses.replace(TOY, dropout_rate=0.5)
    graphdef = abstract_model(GPT, config)[0]
    key = step_key(jax.random.key(7), 3)
    tokens = jnp.arange(10)[None]
    seen = {}

    def keep(key, rate, shape):
        mask = keep_mask(key, rate, shape)
        seen[shape] = [*seen.get(shape, []), np.asarray(mask)]
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxformer.layers.dropout.keep_mask", keep)
        merge(graphdef, params)(tokens, dropout_key=key)
    units, weights = (1, 10, TOY.width), (1, TOY.num_heads, 10, 10)
    paths = [("embedding_dropout",)]
    for i in range(TOY.num_layers):
        paths += [("blocks", i, "attention_dropout"), ("blocks", i, "mlp_dropout")]
    assert len(seen[units]) == len(paths)
    for path, mask in zip(paths, seen[units], strict=True):
        np.testing.assert_array_equal(mask, keep_mask(fold_path(key, *path), 0.5, units))
    for i, mask in enumerate(seen[weights]):
        path = ("blocks", i, "attention", "weights")
        np.testing.assert_array_equal(mask, keep_mask(fold_path(key, *path), 0.5, weights))
    assert len(seen[weights]) == TOY.num_layers


def test_another_step_drops_other_units(toy):
    config = dataclasses.replace(TOY, dropout_rate=0.5)
    model = merge(abstract_model(GPT, config)[0], toy[1])
    tokens, key = jnp.arange(10)[None], jax.random.key(0)
    one, again, other = (model(tokens, dropout_key=step_key(key, s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(model(tokens), merge(*toy)(tokens))


def test_a_text_longer_than_the_context_is_refused(toy):
    with pytest.raises(UserError, match="18 tokens exceed the context of 17"):
        merge(*toy)(jnp.zeros((1, 18), int))
