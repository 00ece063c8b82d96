"""Generated tokens against the PyTorch twin and against transformers' GPT-2: all equal.

Everything is float64, in which no two logits are so close that rounding decides between them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import torchref.config
import torchref.decoding.generate
import torchref.models.gpt
from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.generate import generate
from jaxformer.decoding.sampling import gumbel_noise
from jaxformer.decoding.state import row_keys
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.parity.engine.model_pair import twin_config
from jaxformer.weights.convert import to_torch
from jaxformer.weights.families import gpt2
from jaxformer.weights.twin import TWIN

# Weights large enough for varied texts: at the usual 0.02 a text repeats one token.
CONFIG = GPTConfig(
    vocab_size=41,
    context_length=31,
    width=14,
    num_heads=2,
    mlp_width=37,
    num_layers=2,
    init_std=0.4,
    dtype="float64",
)


@pytest.fixture(autouse=True)
def _float64_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread does not speed up such small models
    with jax.enable_x64(True):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    """Graph and parameters."""
    return abstract_model(GPT, CONFIG)[0], init_params(GPT, CONFIG, jax.random.key(0))


@pytest.fixture
def twin(model):
    """The twin with the same weights."""
    config = twin_config(CONFIG)
    module = torchref.models.gpt.GPT(config).double()
    tensors = {name: torch.tensor(x) for name, x in to_torch(model[1], TWIN).items()}
    module.load_state_dict(tensors)
    return module, config


def random_prompts(count, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, CONFIG.context_length + 1, count)
    return [rng.integers(0, CONFIG.vocab_size, length) for length in lengths]


def ours(model, prompts, **options):
    return np.stack(list(generate(*model, CONFIG, prompts, **options)), axis=1)


def theirs(twin, prompts, max_new_tokens, sampling, seed=0):
    """Each prompt alone through the twin, given the noise that our row draws."""
    sampling = torchref.config.SamplingConfig(**dataclasses.asdict(sampling))
    noise_tBV = shared_noise(seed, len(prompts), max_new_tokens)
    return [
        torchref.decoding.generate.generate(
            *twin, prompt.tolist(), max_new_tokens, sampling, lambda t, row=row: noise_tBV[t, row]
        )
        for row, prompt in enumerate(prompts)
    ]


@functools.cache
def shared_noise(seed, batch_size, steps):
    """What `generate` draws, (steps, B, V)."""
    keys, like_BV = row_keys(seed, batch_size), jnp.zeros((batch_size, CONFIG.vocab_size))
    noise_tBV = jax.vmap(lambda step: gumbel_noise(keys, step, like_BV))(jnp.arange(steps))
    return torch.tensor(np.asarray(noise_tBV))


def test_greedy_tokens_of_200_prompts_are_the_twins(model, twin):
    greedy = SamplingConfig(temperature=0)
    texts = set()
    for batch in range(50):
        prompts = random_prompts(4, seed=batch)
        actual = ours(model, prompts, max_new_tokens=20, sampling=greedy)
        np.testing.assert_array_equal(actual, theirs(twin, prompts, 20, greedy))
        texts |= {tuple(row) for row in actual.tolist()}
    assert len(texts) > 150  # different texts, so their equality is a meaningful test


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7, top_k=5),
        SamplingConfig(temperature=1.3, top_p=0.8),
        SamplingConfig(top_k=10, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
        SamplingConfig(temperature=0, repetition_penalty=1.5),
    ],
)
def test_sampled_tokens_are_the_twins_given_the_same_noise(model, twin, sampling):
    prompts = random_prompts(6, seed=1)
    actual = ours(model, prompts, max_new_tokens=40, sampling=sampling, seed=5)
    np.testing.assert_array_equal(actual, theirs(twin, prompts, 40, sampling, seed=5))


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_are_those_of_transformers_own_generate(model, penalty):
    tensors = to_torch(model[1], gpt2.HUGGING_FACE)
    oracle = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=CONFIG.vocab_size,
            n_positions=CONFIG.context_length,
            n_embd=CONFIG.width,
            n_layer=CONFIG.num_layers,
            n_head=CONFIG.num_heads,
            n_inner=CONFIG.mlp_width,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    oracle = oracle.double().eval()
    oracle.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=False)
    prompts = [prompt[:12] for prompt in random_prompts(8, seed=2)]
    sampling = SamplingConfig(temperature=0, repetition_penalty=penalty)
    actual = ours(model, prompts, max_new_tokens=20, sampling=sampling)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor(prompt)[None]
        expected = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=penalty,
        )
        np.testing.assert_array_equal(actual[row], expected[0, len(prompt) :])
