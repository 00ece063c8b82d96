"""GPT-2 of 124 million parameters from scratch, by its published size and nanoGPT's settings.

    jaxformer train gpt2_124m --data.path fineweb/ --run-dir runs/gpt2

For one GPU or a mesh of them. --data.path is a directory of token shards as nanoGPT (train.bin,
val.bin) and llm.c (*_train_*.bin, *_val_*.bin) write them, of which every token is a uint16, or a
text. Shards hold token ids alone: with --data.tokenizer tokenizer.json, of GPT-2's byte-level BPE,
such a run samples and scores text, else it takes and writes numbers. On a text, BPE of 50,257
tokens is trained unless a tokenizer.json is named.

600,000 steps of 512 x 1024 tokens, in 32 slices of 16 rows (--accumulation): AdamW, 6e-4 after
2,000 steps of warm-up down to 6e-5, weight decay 0.1, gradients clipped to 1, bfloat16, no dropout.
nanoGPT's README reports a validation loss of about 2.85 on OpenWebText from these settings. The
vocabulary is padded from 50,257 to 50,304, a multiple of 64, which matrix units need.

Sources: Radford et al. 2019, section 2; https://github.com/karpathy/nanoGPT, "reproducing GPT-2".
"""

import dataclasses

from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import (
    GPT_PRESETS,
    CheckpointConfig,
    DataConfig,
    LanguageConfig,
    OptimizerConfig,
)
from jaxformer.errors import UserError

PRESETS = {
    "gpt2": LanguageConfig(
        model=dataclasses.replace(
            GPT_PRESETS["gpt2"], vocab_size=50_304, dropout_rate=0.0, dtype="bfloat16"
        ),
        data=DataConfig(vocab_size=50_257),
        optimizer=OptimizerConfig(
            peak_learning_rate=6e-4,
            floor_learning_rate=6e-5,
            warmup_steps=2000,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        checkpoint=CheckpointConfig(every=1000),
        steps=600_000,
        batch_size=512,
        accumulation=32,
        eval_every=1000,
    ),
}


def main(argv: list[str]) -> int:
    """Train by the flags and say what came out."""
    config, options = parse_recipe(PRESETS, argv, __file__, __doc__)
    if config.data.path is None and not options.resume:
        raise UserError(
            "no data to learn from: name a directory of token shards, or a text, with --data.path"
        )
    from jaxformer.run.loop import train
    from jaxformer.run.summary import summarise

    outcome = train(config, options)
    print(summarise(outcome, options.run_dir))
    return outcome.exit_status


if __name__ == "__main__":
    run_recipe(__file__, main)
