"""A decoder of today's parts on the source of Python's own standard library.

    jaxformer train decoder_stdlib --run-dir runs/decoder

The data, the tokens and the steps are those of `gpt_stdlib`, and the number of parameters is about
the same, so that the two compare. In the place of GPT-2's parts it has rotary positions, RMSNorm,
SwiGLU, two query heads per key-value head and normalised queries and keys; Muon updates the kernels
of the blocks, and the rate stays at its peak until it decays over the last fifth of the steps. Each
can be taken back by a flag, such as --optimizer.kernels adamw, --optimizer.schedule cosine or
--model.no-qk-norm.

Sources: Touvron et al. 2023, section 2.2; Ainslie et al. 2023; Henry et al. 2020; Jordan et al.
2024, https://kellerjordan.github.io/posts/muon; Hu et al. 2024, section 4.2.
"""

from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import (
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    DecoderLanguageConfig,
    OptimizerConfig,
)

PRESETS = {
    "demo": DecoderLanguageConfig(
        model=DecoderConfig(
            vocab_size=0,
            context_length=256,
            width=128,
            num_heads=4,
            num_kv_heads=2,
            head_width=32,
            mlp_width=384,
            num_layers=4,
            qk_norm=True,
            init_std=0.05,
        ),
        data=DataConfig(tokenizer="bpe", vocab_size=4096),
        optimizer=OptimizerConfig(
            peak_learning_rate=4e-3,
            floor_learning_rate=1e-4,
            schedule="stable",
            kernels="muon",
        ),
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
