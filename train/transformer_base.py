r"""The Transformer of 2017 as published (Vaswani et al. 2017, section 5 and table 3), for GPUs.

    jaxformer train transformer_base --data.source train.en \
        --data.target train.de --data.val-source newstest2013.en \
        --data.val-target newstest2013.de --run-dir runs/base

Preset `base`: 100,000 steps, dropout 0.1; `big`: width 1024, 16 heads, 300,000 steps, dropout 0.3.
Both: 25,000 source and 25,000 target tokens a batch over all devices, Adam with 4,000 steps of
warm-up, label smoothing 0.1, BPE of 37,000 tokens over both languages. At the end the last 5
checkpoints (20 of `big`) are averaged and BLEU is printed, decoded with a beam of 4 and a length
penalty of 0.6.

The paper reports 27.3 and 28.4 BLEU on newstest2014 after training on WMT 2014 English-German. Its
figures are of tokenised text with German compounds split; sacrebleu's, printed here, come out about
a point lower and are the ones to compare. `--model.dtype bfloat16` is the faster type on GPUs, and
`--accumulation 8` cuts a batch into slices where memory is short.
"""

import dataclasses

from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import (
    TRANSFORMER_PRESETS,
    CheckpointConfig,
    NoamConfig,
    TextPairsConfig,
    TextTranslationConfig,
)
from jaxformer.extras import require_extra


def preset(name: str, steps: int, checkpoint: CheckpointConfig) -> TextTranslationConfig:
    """A row of table 3; a checkpoint is written every ten minutes of the published machine."""
    return TextTranslationConfig(
        model=dataclasses.replace(TRANSFORMER_PRESETS[name], vocab_size=0),
        data=TextPairsConfig(vocab_size=37_000, max_tokens=256),
        optimizer=NoamConfig(),
        checkpoint=checkpoint,
        label_smoothing=0.1,
        batch_tokens=25_000,
        steps=steps,
        eval_every=checkpoint.every,
    )


PRESETS = {
    "base": preset("base", 100_000, CheckpointConfig(every=1500, keep=5)),
    "big": preset("big", 300_000, CheckpointConfig(every=600, keep=20)),
}


def main(argv: list[str]) -> int:
    """Train by the flags and score the mean of the last checkpoints on the validation sentences."""
    config, options = parse_recipe(PRESETS, argv, __file__, __doc__)
    require_extra("translate", "BLEU at the end of the training")
    from jaxformer.run.loop import train
    from jaxformer.run.summary import summarise, translated

    outcome = train(config, options)
    if outcome.finished:
        print(*translated(outcome, options.run_dir), sep="\n")
    print(summarise(outcome, options.run_dir))
    return outcome.exit_status


if __name__ == "__main__":
    run_recipe(__file__, main)
