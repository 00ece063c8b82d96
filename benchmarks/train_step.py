"""Train steps of jaxformer beside the same model in PyTorch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --case char-cpu --repetitions 30
    python -m benchmarks.train_step --peer-path ~/nanoGPT

The sides: jaxformer's step as a run takes it; the twin; transformers' GPT-2 (Marian for the
Transformer of 2017), eager and compiled, with scaled_dot_product_attention and fused AdamW; and
with --peer-path a checkout of nanoGPT, for which all sides take the exact GELU that it has. All
begin with the same weights, and one whose first loss differs is left out.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.comparison import Benchmark, Entrant, choose, parser, same_loss
from jaxformer.config import GPT_PRESETS, TRANSFORMER_PRESETS, ModelConfig
from train.gpt_char import PRESETS

SIDES = "benchmarks.training_sides"


class Case(NamedTuple):
    """A model and a batch."""

    model: str
    config: ModelConfig
    batch_size: int
    length: int
    steps: int = 1
    """In a repetition."""


def _gpt(name: str, **sizes: Any) -> ModelConfig:
    return dataclasses.replace(GPT_PRESETS[name], dropout_rate=0.0, **sizes)


CHAR = {size: dataclasses.replace(PRESETS[size].model, vocab_size=65) for size in PRESETS}
CASES = {
    "char-cpu": Case("gpt", CHAR["cpu"], 12, 64, steps=4),
    "6 x 384": Case("gpt", dataclasses.replace(CHAR["gpu"], dropout_rate=0.0), 8, 256),
    "4 x 768": Case("gpt", _gpt("gpt2", num_layers=4, vocab_size=8192), 8, 256),
    "transformer-base": Case(
        "transformer", dataclasses.replace(TRANSFORMER_PRESETS["base"], dropout_rate=0.0), 4, 64
    ),
}


def settings(case: Case) -> dict[str, Any]:
    """What the sides are told."""
    return case._asdict() | {"config": dataclasses.asdict(case.config)}


FORMS = ("eager", "compiled")
"""Of PyTorch."""


def entrants(
    case: Case, peer: str | None = None, device: str = "cpu", forms: Sequence[str] = FORMS
) -> Iterator[Entrant]:
    """The sides of a case; the twin is for float32 on CPUs only."""
    told = settings(case)
    torch = {"JAX_PLATFORMS": "cpu"}  # jax is there to draw the weights, and leaves the GPU alone
    family = {"gpt": "GPT-2", "transformer": "Marian"}[case.model]
    yield Entrant("jaxformer", f"{SIDES}:jaxformer", told)
    if device == "cpu" and case.config.dtype == "float32":
        yield Entrant("twin, eager", f"{SIDES}:twin", told, torch)
    for form in forms:
        more = {"compiled": form == "compiled", "device": device}
        yield Entrant(
            f"transformers' {family}, {form}", f"{SIDES}:transformers", told | more, torch
        )
        if peer is not None and case.model == "gpt":
            yield Entrant(
                f"nanoGPT, {form}", f"{SIDES}:nanogpt", told | more | {"path": peer}, torch
            )


def measure(
    benchmark: Benchmark,
    name: str,
    case: Case,
    peer: str | None = None,
    device: str = "cpu",
    forms: Sequence[str] = FORMS,
) -> None:
    """One case, its tokens and floating-point operations counted.

    MFU takes 6 n + 12 N D T operations per token, with n the parameters of a GPT less its positions
    (Chowdhery et al. 2022, PaLM, appendix B), and the GPU's dense peak.
    """
    from benchmarks.training_sides import batch_of, run_config
    from benchmarks.weights import MODELS
    from jaxformer.models.functional import abstract_model, num_parameters
    from jaxformer.tasks.kinds import step_cost

    run = run_config(case.model, case.config, case.batch_size, case.length)
    cost = step_cost(run, batch_of(run, case.batch_size, case.length))
    sizes = run.model
    n = num_parameters(abstract_model(MODELS[case.model][1], sizes)[1])
    n -= case.length * sizes.width if case.model == "gpt" else 0
    model_flops = cost.tokens * (6 * n + 12 * sizes.num_layers * sizes.width * case.length)
    benchmark.compare(
        f"{name}, {case.config.dtype}",
        entrants(case, peer, device, forms),
        same_loss(case.config.dtype),
        settings=settings(case),
        per_second={"all": {"tokens": cost.tokens, "GFLOP": cost.flops / 1e9}},
        model_flops=model_flops if case.model == "gpt" else None,
    )


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=15)
    choose(flags, "case", CASES)
    flags.add_argument("--peer-path", help="directory of a nanoGPT checkout")
    words = flags.parse_args()
    benchmark = Benchmark("train_step", words)
    machine.measure(benchmark)
    for name in words.case:
        case = CASES[name]
        if words.peer_path and case.model == "gpt":
            case = case._replace(config=dataclasses.replace(case.config, activation="gelu"))
        measure(benchmark, name, case, words.peer_path)
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
