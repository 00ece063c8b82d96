"""Masks are boolean: one of another type, which would be read the other way round, is refused."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.errors import UserError
from jaxformer.layers.attention import attention
from jaxformer.layers.masks import causal_mask, combine_masks
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, merge
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.training.loss import cross_entropy

B, L = 2, 7
ADDITIVE = jnp.where(causal_mask(L), 0.0, -jnp.inf)
VALID = jnp.arange(L) < jnp.asarray([[7], [5]])


@pytest.fixture
def as_installed():
    """Without the tests' own checks of types and shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def output(model, config, *arguments):
    """Shapes of a model's output."""
    graphdef, shapes = abstract_model(model, config)
    return jax.eval_shape(lambda params: merge(graphdef, params)(*arguments), shapes)


def attended(mask):
    qkv = jnp.ones((3, B, L, 1, 3))
    return jax.eval_shape(lambda: attention(*qkv, mask))


TOYS = GPT_PRESETS["toy"], BERT_PRESETS["toy"], TRANSFORMER_PRESETS["toy"]
INT = jnp.zeros((B, L), jnp.int32)
TAKERS = {
    "attention": lambda mask: attended(mask),
    "combined": lambda mask: combine_masks(None, mask, causal_mask(L)),
    "combined last": lambda mask: combine_masks(causal_mask(L), mask),
    "GPT": lambda mask: output(GPT, TOYS[0], INT, mask),
}
TAKERS_OF_VALID = {
    "BERT": lambda valid: output(Bert, TOYS[1], INT, None, valid),
    "encoder": lambda valid: output(Transformer, TOYS[2], INT, INT, valid),
    "decoder": lambda valid: output(Transformer, TOYS[2], INT, INT, None, valid),
    "loss": lambda valid: cross_entropy(jnp.zeros((B, L, 3)), INT, valid),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("taker", TAKERS)
def test_an_attention_mask_that_is_not_boolean_is_refused(taker):
    TAKERS[taker](ADDITIVE == 0)
    for mask in (ADDITIVE, ADDITIVE.astype(jnp.bfloat16), causal_mask(L).astype(jnp.int32)):
        with pytest.raises(UserError, match=f"{mask.dtype}, not boolean") as refusal:
            TAKERS[taker](mask)
        assert "mask == 0" in str(refusal.value)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("taker", TAKERS_OF_VALID)
def test_a_mask_of_tokens_that_is_not_boolean_is_refused(taker):
    TAKERS_OF_VALID[taker](VALID)
    for valid in (VALID.astype(jnp.int32), VALID.astype(jnp.float32)):
        with pytest.raises(UserError, match=f"{valid.dtype}, not boolean"):
            TAKERS_OF_VALID[taker](valid)
