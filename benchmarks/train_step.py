"""Seconds per train step of jaxformer and of its PyTorch twin, on the same batch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --preset gpu --json train_step.json

The presets are those of `gpt_char`. Reports the median, fastest and slowest of the
repetitions, and the ratio to jaxformer. Needs PyTorch.
"""

import jax
import torch

from benchmarks.steps import Seconds, compare, jax_step, parser, preset, random_tokens, timed
from jaxformer.config import LanguageConfig
from jaxformer.parity.engine.model_pair import twin_config
from torchref.batch import Batch
from torchref.layers.dropout import random_keep
from torchref.models.gpt import GPT
from torchref.training.objectives import next_token
from torchref.training.optimizer import adamw
from torchref.training.schedule import warmup_cosine
from torchref.training.step import train_step


def torch_step(config: LanguageConfig) -> Seconds:
    """The train step of the twin, on the CPU."""
    model = GPT(twin_config(config.model))
    settings = twin_config(config.optimizer)
    optimizer = adamw(model, settings)
    rate = warmup_cosine(settings, config.steps)
    tokens = torch.as_tensor(random_tokens(config), dtype=torch.long)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(tokens[:, 1:].shape, dtype=torch.bool))
    keep = random_keep(torch.Generator().manual_seed(0)) if config.model.dropout_rate else None

    def step() -> None:
        clip = settings.clip_norm
        train_step(model, next_token, optimizer, rate, clip, 0, [batch], [keep])

    return timed(step)


def main() -> None:
    """Measure and print."""
    words = parser(__doc__, repetitions=60).parse_args()
    config = preset(words.preset)
    compare(
        words,
        {"jaxformer, jit": jax_step(config), "twin, eager": torch_step(config)},
        device=jax.devices()[0].device_kind,
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
