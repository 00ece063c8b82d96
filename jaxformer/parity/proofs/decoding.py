"""Proofs of decoding: sampling filters and samples, the key-value cache, whole generated texts.

Both sides get the same Gumbel noise, that of jaxformer's keys.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxformer.config import SamplingConfig
from jaxformer.decoding import generate, reference, sampling, state
from jaxformer.layers.cache import init_cache
from jaxformer.models.functional import merge
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof, compare_values
from jaxformer.parity.engine.model_pair import ModelPair, twin_config
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.proofs.gpt import GPT_PAIR
from jaxformer.porting.compare import Key
from torchref.decoding import generate as torch_generate
from torchref.decoding import sampling as torch_sampling

SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0),
    "plain": SamplingConfig(),
    "temperature": SamplingConfig(temperature=0.7),
    "top-k": SamplingConfig(top_k=3),
    "top-p": SamplingConfig(top_p=0.6),
    "min-p": SamplingConfig(min_p=0.2),
    "repetition penalty": SamplingConfig(repetition_penalty=1.7),
    "all": SamplingConfig(repetition_penalty=1.2, temperature=1.3, top_k=9, top_p=0.9, min_p=0.02),
}
NEW_TOKENS = 12
DISPATCHES = {
    "one step per dispatch": generate.Dispatch(max_steps=1),
    "three steps, caches from four slots": generate.Dispatch(
        max_steps=3, seconds=math.inf, min_cache_length=4
    ),
}
"""The time of a step, which differs from run to run, decides in neither."""


def prove_sampling(case: Case) -> Comparison:
    """The logits of every filter, the tokens it excludes, and the token sampled from them."""
    B, V = 16, case.config.vocab_size
    logits, rng = 2.0 * case.normal("logits", B, V), case.rng("sampling")
    seen, noise = rng.random((B, V)) < 0.4, case.normal("noise", B, V)
    ours: dict[Key, Any] = {}
    theirs: dict[Key, Any] = {}
    with arithmetic(case.dtype):
        for name, config in SAMPLINGS.items():
            twin = twin_config(config)
            array, tensor = case.to_jax(logits), case.to_torch(logits)
            seen_array, seen_tensor = jnp.asarray(seen), torch.tensor(seen)
            _add_filtered(ours, name, sampling.filter_logits(array, seen_array, config), jnp)
            kept = torch_sampling.filter_logits(tensor, seen_tensor, twin)
            _add_filtered(theirs, name, kept, torch)
            key = Key("sampling", "tokens", name)
            ours[key] = sampling.select_token(array, seen_array, config, case.to_jax(noise))
            theirs[key] = torch_sampling.select_token(
                tensor, seen_tensor, twin, case.to_torch(noise)
            )
    return compare_values(ours, theirs, case, "layer", "gpt")


def _add_filtered(values: dict[Key, Any], name: str, logits: Any, library: Any) -> None:
    kept = library.isfinite(logits)
    values[Key("sampling", "output", f"{name}: kept")] = kept
    values[Key("sampling", "output", f"{name}: logits")] = library.where(kept, logits, 0.0)


def prove_cache(case: Case) -> Comparison:
    """Logits of a text read token by token and in a longer piece, against PyTorch's."""
    return compare_cache(case, GPT_PAIR)


def prove_generate(case: Case) -> Comparison:
    """Texts longer than the context, greedy and sampled: cached and uncached against PyTorch's."""
    return compare_texts(case, GPT_PAIR)


def compare_cache(case: Case, pair: ModelPair) -> Comparison:
    """`prove_cache` of any language model."""
    case = _without_dropout(case)
    B, T = case.batch, case.config.context_length
    tokens = case.tokens("tokens", B, T)
    with arithmetic(case.dtype):
        graphdef, params = pair.draw(case)
        model = merge(graphdef, params)
        caches = init_cache(case.model_config, B, T)
        logits = []
        cuts = [0, 1, 2, *range(T - 2, T + 1)]
        for start, end in itertools.pairwise(cuts):
            positions = jnp.broadcast_to(jnp.arange(start, end), (B, end - start))
            piece = jnp.asarray(tokens[:, start:end])
            hidden, caches = model.hidden(piece, caches=caches, positions=positions)
            logits.append(model.logits(hidden))
        with torch.no_grad():
            expected = pair.twin(case, params)(torch.tensor(tokens))
    key = Key("cache", "output", "logits")
    return compare_values(
        {key: jnp.concatenate(logits, axis=1)}, {key: expected}, case, "model", pair.name
    )


def compare_texts(case: Case, pair: ModelPair) -> Comparison:
    """`prove_generate` of any language model."""
    case = _without_dropout(case)
    T = case.config.context_length
    prompts = [case.tokens(f"prompt {n}", n) for n in (1, T // 2 + 1, T)]
    ours: dict[Key, Any] = {}
    theirs: dict[Key, Any] = {}
    with arithmetic(case.dtype):
        graphdef, params = pair.draw(case)
        twin = pair.twin(case, params)
        for name in ("greedy", "all"):
            expected = _twin_texts(twin, case, prompts, SAMPLINGS[name])
            for kind, function in (
                ("cached", generate.generate),
                ("uncached", reference.generate_uncached),
            ):
                key = Key("generate", "tokens", f"{name}, {kind}")
                ours[key] = _texts(function, graphdef, params, case, prompts, SAMPLINGS[name])
                theirs[key] = expected
    return compare_values(ours, theirs, case, "tokens", pair.name)


def prove_dispatch(case: Case) -> Comparison:
    """Texts that cross caches of 4, 8 and 13 slots and then the context, in other dispatches."""
    case = _without_dropout(case).with_options(context_length=13)
    prompts = [case.tokens(f"prompt {row}", 2 + row % 2) for row in range(6)]
    ours: dict[Key, Any] = {}
    theirs: dict[Key, Any] = {}
    with arithmetic(case.dtype):
        graphdef, params = GPT_PAIR.draw(case)
        expected = _twin_texts(GPT_PAIR.twin(case, params), case, prompts, SAMPLINGS["all"])
        for name, dispatch in DISPATCHES.items():
            key = Key("generate", "tokens", name)
            function = functools.partial(generate.generate, dispatch=dispatch)
            ours[key] = _texts(function, graphdef, params, case, prompts, SAMPLINGS["all"])
            theirs[key] = expected
    return compare_values(ours, theirs, case, "tokens", "gpt")


def _texts(
    function: Callable[..., Any],
    graphdef: nnx.GraphDef,
    params: Any,
    case: Case,
    prompts: list[np.ndarray],
    config: SamplingConfig,
) -> np.ndarray:
    steps = function(
        graphdef,
        params,
        case.model_config,
        prompts,
        max_new_tokens=NEW_TOKENS,
        sampling=config,
        seed=case.seed,
    )
    return np.stack([np.asarray(tokens, np.int64) for tokens in steps], axis=1)


def _twin_texts(
    twin: Any, case: Case, prompts: list[np.ndarray], config: SamplingConfig
) -> np.ndarray:
    keys = state.row_keys(case.seed, len(prompts))
    like = jnp.zeros((len(prompts), case.config.vocab_size), case.dtype)
    noise = [np.array(sampling.gumbel_noise(keys, t, like)) for t in range(NEW_TOKENS)]
    settings = twin_config(config)
    model_config = twin_config(case.model_config)

    def text(row: int, prompt: list[int]) -> list[int]:
        def noise_at(step: int) -> torch.Tensor:
            return torch.tensor(noise[step][row])

        return torch_generate.generate(twin, model_config, prompt, NEW_TOKENS, settings, noise_at)

    return np.array([text(row, prompt.tolist()) for row, prompt in enumerate(prompts)])


def _without_dropout(case: Case) -> Case:
    return case.with_dropout(0.0)


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of decoding, each with its case."""
    subjects = (prove_sampling, prove_cache, prove_generate, prove_dispatch)
    return [(proof, case) for proof in subjects]
