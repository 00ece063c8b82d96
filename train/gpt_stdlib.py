"""The default recipe: a GPT on the source of Python's own standard library.

    jaxformer train gpt_stdlib --run-dir runs/demo

Byte-level BPE of 4,096 tokens. It trains on 4.6 million tokens: about five minutes on two cores
that process 19,000 tokens per second; a line after the first steps estimates the time of this
machine. At the end it prints its validation loss in bits per byte beside those of a bigram model of
bytes and of xz on the same text.
"""

from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import (
    CheckpointConfig,
    DataConfig,
    GPTConfig,
    LanguageConfig,
    OptimizerConfig,
)

PRESETS = {
    "demo": LanguageConfig(
        model=GPTConfig(
            vocab_size=0,
            context_length=256,
            width=128,
            num_heads=4,
            mlp_width=512,
            num_layers=4,
            init_std=0.05,
        ),
        data=DataConfig(tokenizer="bpe", vocab_size=4096),
        optimizer=OptimizerConfig(peak_learning_rate=4e-3, floor_learning_rate=1e-4),
        checkpoint=CheckpointConfig(every=750),
        steps=4500,
        batch_size=4,
        eval_every=750,
    ),
}


def main(argv: list[str]) -> int:
    """Train by the flags and compare what came out with a bigram model and with xz."""
    config, options = parse_recipe(PRESETS, argv, __file__, __doc__)
    from jaxformer.run.loop import train
    from jaxformer.run.summary import beside_baselines, summarise

    outcome = train(config, options)
    print(beside_baselines(outcome) + summarise(outcome, options.run_dir))
    return outcome.exit_status


if __name__ == "__main__":
    run_recipe(__file__, main)
