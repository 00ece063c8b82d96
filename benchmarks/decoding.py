"""Decoding by jaxformer beside `generate` of transformers: greedy GPTs, and a beam of 4.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --case "6 x 384" --batch-size 1

A GPT continues prompts of 16 tokens greedily; `first token` is the time until the first new token
of all rows is there, with its prompt read. The Transformer of 2017 translates sentences of 16
tokens into as many with a beam of 4. All sides have the same weights, and one whose tokens are
others is left out; a share may differ where rounding decides between two nearly equal logits.
Random weights hardly ever end a text, so the end is only forbidden in transformers.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.comparison import Benchmark, Entrant, choose, parser, same_tokens
from benchmarks.side import Done, Work
from jaxformer.config import GPT_PRESETS, TRANSFORMER_PRESETS, GPTConfig, ModelConfig
from train.gpt_char import PRESETS

PROMPT = 16
BEAM = 4
CHECKED = 8
"""Tokens of each row that are compared."""
CASES: dict[str, tuple[ModelConfig, int]] = {
    "6 x 384": (dataclasses.replace(PRESETS["gpu"].model, vocab_size=4096), 128),
    "gpt2": (GPT_PRESETS["gpt2"], 32),
    "transformer-base": (TRANSFORMER_PRESETS["base"], 16),
}
"""The model and the number of new tokens."""
BATCH_SIZES = (1, 8, 64)


def greedy(config: dict[str, Any], batch_size: int, new_tokens: int) -> Work:
    """jaxformer's cached generation, read token by token as `jaxformer sample` does."""
    import jax
    import jax.numpy as jnp

    from benchmarks.weights import draw, tokens
    from jaxformer.config import SamplingConfig
    from jaxformer.decoding.generate import generate
    from jaxformer.models.functional import abstract_model
    from jaxformer.models.gpt import GPT

    sizes = GPTConfig(**config)
    graphdef, _ = abstract_model(GPT, sizes)
    params = jax.tree.map(lambda x: jnp.asarray(x, sizes.dtype), draw("gpt", sizes))
    prompts = tokens(sizes, batch_size, PROMPT)

    def work() -> Done:
        begun = time.perf_counter()
        found = generate(
            graphdef, params, sizes, prompts,
            max_new_tokens=new_tokens, sampling=SamplingConfig(temperature=0),
        )  # fmt: skip
        head = [next(found)]
        first = time.perf_counter() - begun
        rows = np.stack([*head, *found], axis=1)
        return Done([*map(float, rows[:, :CHECKED].flat)], {"first token": first})

    return work


def greedy_transformers(
    config: dict[str, Any], batch_size: int, new_tokens: int, device: str = "cpu"
) -> Work:
    """transformers' generate on GPT-2 with its cache."""
    import torch
    from transformers import logging
    from transformers.generation.streamers import BaseStreamer

    from benchmarks.training_sides import gpt2_model
    from benchmarks.weights import tokens

    logging.set_verbosity_error()
    sizes = GPTConfig(**config)
    module = gpt2_model(sizes).to(device, getattr(torch, sizes.dtype)).eval()
    prompts = torch.tensor(tokens(sizes, batch_size, PROMPT), device=device)

    class Clock(BaseStreamer):
        """When the first new tokens came, after the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def work() -> Done:
        clock, begun = Clock(), time.perf_counter()
        with torch.inference_mode():
            found = module.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=sizes.vocab_size - 1,
                streamer=clock,
            )
        rows = found[:, PROMPT : PROMPT + CHECKED].cpu()
        return Done([*map(float, rows.flatten())], {"first token": clock.times[1] - begun})

    return work


def beam(config: dict[str, Any], batch_size: int, new_tokens: int) -> Work:
    """jaxformer's compiled beam search."""
    import jax
    import jax.numpy as jnp

    from benchmarks.weights import draw, tokens
    from jaxformer.batch import SpecialTokens
    from jaxformer.config import BeamConfig, TransformerConfig
    from jaxformer.decoding.beam import translate
    from jaxformer.models.functional import abstract_model
    from jaxformer.models.transformer import Transformer

    sizes = TransformerConfig(**config)
    graphdef, _ = abstract_model(Transformer, sizes)
    params = jax.tree.map(jnp.asarray, draw("transformer", sizes))
    sources = tokens(sizes, batch_size, new_tokens)
    specials = SpecialTokens.after(sizes.vocab_size - 3)
    search = BeamConfig(beam=BEAM, length_penalty=0.0, extra_length=1)  # the end

    def work() -> Done:
        found = translate(graphdef, params, sizes, sources, specials, search)
        return Done([float(t) for [best] in found for t in best.tokens[:CHECKED]])

    return work


def beam_transformers(
    config: dict[str, Any], batch_size: int, new_tokens: int, device: str = "cpu"
) -> Work:
    """transformers' beam search on Marian."""
    import torch
    from transformers import LogitsProcessor, logging

    from benchmarks.training_sides import marian_model
    from benchmarks.weights import tokens
    from jaxformer.config import TransformerConfig

    logging.set_verbosity_error()
    sizes = TransformerConfig(**config)
    module = marian_model(sizes).to(device).eval()
    sources = torch.tensor(tokens(sizes, batch_size, new_tokens), device=device)
    end = sizes.vocab_size - 1

    class OfOneLength(LogitsProcessor):
        """As jaxformer's search: the end after the last token, at the probability it has."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            is_last = input_ids.shape[1] > new_tokens
            scores[:, : end if is_last else 0] = -torch.inf
            scores[:, end - 2 : end if is_last else end + 1] = -torch.inf
            return scores

    def work() -> Done:
        with torch.inference_mode():
            found = module.generate(
                sources,
                attention_mask=torch.ones_like(sources),
                max_new_tokens=new_tokens + 1,
                num_beams=BEAM,
                length_penalty=0.0,
                do_sample=False,
                logits_processor=[OfOneLength()],
            )
        rows = found[:, 1 : 1 + min(CHECKED, new_tokens)]  # between the start and the end
        return Done([*map(float, rows.flatten())])

    return work


def entrants(
    config: ModelConfig, batch_size: int, new_tokens: int, device: str = "cpu"
) -> Iterator[Entrant]:
    """Both sides of a case."""
    told = {
        "config": dataclasses.asdict(config),
        "batch_size": batch_size,
        "new_tokens": new_tokens,
    }
    kind = "greedy" if isinstance(config, GPTConfig) else "beam"
    yield Entrant("jaxformer", f"benchmarks.decoding:{kind}", told)
    yield Entrant(
        "transformers",
        f"benchmarks.decoding:{kind}_transformers",
        told | {"device": device},
        {"JAX_PLATFORMS": "cpu"},
    )


def measure(
    benchmark: Benchmark,
    name: str,
    config: ModelConfig,
    batch_size: int,
    new_tokens: int,
    device: str = "cpu",
) -> None:
    """One case."""
    from benchmarks.weights import MODELS
    from jaxformer.models.functional import abstract_model, num_parameters

    model = MODELS["gpt" if isinstance(config, GPTConfig) else "transformer"][1]
    width = 2 if config.dtype == "bfloat16" else 4
    read = new_tokens * width * num_parameters(abstract_model(model, config)[1])
    unit = "tokens" if isinstance(config, GPTConfig) else "target tokens"
    benchmark.compare(
        f"{name}, {config.dtype}, B {batch_size}",
        entrants(config, batch_size, new_tokens, device),
        same_tokens(config.dtype),
        settings={"config": dataclasses.asdict(config), "new_tokens": new_tokens},
        per_second={"all": {unit: batch_size * new_tokens, "GB of weights": read / 1e9}},
    )


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=7)
    choose(flags, "case", CASES)
    flags.add_argument("--batch-size", nargs="+", type=int, default=BATCH_SIZES)
    words = flags.parse_args()
    benchmark = Benchmark("decoding", words)
    machine.measure(benchmark)
    for name, batch_size in itertools.product(words.case, words.batch_size):
        config, new_tokens = CASES[name]
        measure(
            benchmark, name, dataclasses.replace(config, dropout_rate=0.0), batch_size, new_tokens
        )
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
