"""Operations of a batch: six a multiplied weight and token, twelve a width of query and key."""

import pytest

from jaxformer.config import GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.tasks.flops import gpt_flops, transformer_flops


def test_of_a_gpt():
    config = GPT_PRESETS["gpt2"]
    weights = 12 * 12 * 768**2 + 50_257 * 768  # matrices of 12 blocks, and the logits
    expected = 6 * weights + 12 * 12 * 768 * 1024
    assert gpt_flops(config, 2, 1024) == pytest.approx(2 * 1024 * expected)


def test_of_a_transformer():
    config = TRANSFORMER_PRESETS["base"]
    encoder = 6 * (4 * 512**2 + 2 * 512 * 2048)
    decoder = 6 * (8 * 512**2 + 2 * 512 * 2048) + 37_000 * 512
    # Of equal lengths every weight meets every token once.
    attention = 3 * 6 * 512 * 50**2
    expected = 7 * (6 * 50 * (encoder + decoder) + 12 * attention)
    assert transformer_flops(config, 7, 50, 50) == pytest.approx(expected)
    # A source token more passes the encoder and the cross-attentions' keys and values only.
    more = transformer_flops(config, 1, 51, 50) - transformer_flops(config, 1, 50, 50)
    keys = 6 * 2 * 512**2
    assert more == pytest.approx(6 * (encoder + keys) + 12 * 6 * 512 * (51**2 - 50**2 + 50))
