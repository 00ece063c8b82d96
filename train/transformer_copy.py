"""Strings of letters copied or reversed: the smallest proof that an encoder-decoder learns.

    jaxformer train transformer_copy --run-dir runs/copy
    jaxformer train transformer_copy --preset reverse --run-dir runs/reverse

Two layers of width 64 on strings of up to 16 letters, about two minutes on two cores. At the end
the share of held-out strings that come out right to the last letter is printed: 99.70% of `copy`
and 99.40% of `reverse` in the runs that chose these settings.
"""

from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import (
    BeamConfig,
    CheckpointConfig,
    CopyConfig,
    CopyTranslationConfig,
    NoamConfig,
    TransformerConfig,
)


def preset(reverse: bool) -> CopyTranslationConfig:
    """Copying or reversing, which differ in nothing else."""
    return CopyTranslationConfig(
        model=TransformerConfig(
            vocab_size=0,
            context_length=64,
            width=64,
            num_heads=4,
            mlp_width=256,
            num_layers=2,
            init_std=64**-0.5,
        ),
        data=CopyConfig(reverse=reverse),
        optimizer=NoamConfig(factor=0.5, warmup_steps=400),
        checkpoint=CheckpointConfig(every=500),
        label_smoothing=0.0,
        batch_tokens=1024,
        steps=4000,
        eval_every=500,
    )


PRESETS = {"copy": preset(reverse=False), "reverse": preset(reverse=True)}


def main(argv: list[str]) -> int:
    """Train by the flags and count the held-out strings that come out right."""
    config, options = parse_recipe(PRESETS, argv, __file__, __doc__)
    from jaxformer.run.loop import train
    from jaxformer.run.summary import examples, score_held_out, summarise

    outcome = train(config, options)
    if outcome.finished:
        scores = score_held_out(outcome, options.run_dir, BeamConfig(beam=1))
        print(*examples(outcome.data.val_texts, scores, 3), sep="\n")
        print(scores.exact_match_line())
    print(summarise(outcome, options.run_dir))
    return outcome.exit_status


if __name__ == "__main__":
    run_recipe(__file__, main)
