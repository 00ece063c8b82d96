"""What is proven, what is planted, and the run of it all."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from jaxformer.errors import UserError
from jaxformer.parity.bugs import beam as bugs_beam
from jaxformer.parity.bugs import bert as bugs_bert
from jaxformer.parity.bugs import decoding as bugs_decoding
from jaxformer.parity.bugs import model as bugs_model
from jaxformer.parity.bugs import training as bugs_training
from jaxformer.parity.bugs import transformer as bugs_transformer
from jaxformer.parity.bugs import translation as bugs_translation
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.comparison import Proof
from jaxformer.parity.engine.mutation import Bug, MutantResult, run_mutant
from jaxformer.parity.engine.settings import described
from jaxformer.parity.proofs import (
    beam,
    bert,
    decoding,
    gpt,
    layers,
    losses,
    optimizers,
    resume,
    training,
    transformer,
)
from jaxformer.porting.compare import DType, Row, all_ok
from jaxformer.runtime.jax_setup import start_jax

Subject = Callable[[Case], list[tuple[Proof, Case]]]

MODELS: Mapping[str, tuple[Subject, ...]] = {
    "gpt": (
        layers.proofs,
        gpt.proofs,
        losses.proofs,
        optimizers.proofs,
        training.gpt_proofs,
        decoding.proofs,
        resume.proofs,
    ),
    "transformer": (
        layers.decoder_proofs,
        transformer.proofs,
        losses.smoothing_proofs,
        optimizers.adam_proofs,
        training.transformer_proofs,
        resume.transformer_proofs,
        beam.proofs,
    ),
    "bert": (bert.proofs, training.bert_proofs),
}
"""What is proven of each model: its layers, the whole, and all that is done with it.

Layers that several models are made of are proven under the first of them.
"""

BFLOAT16_SUBJECTS = (
    layers.proofs,
    gpt.proofs,
    layers.decoder_proofs,
    transformer.proofs,
    bert.proofs,
)
"""Subjects with a float64 truth to measure bfloat16 against; the path of an optimizer has none."""

BUGS: Mapping[str, tuple[Bug, ...]] = {
    "gpt": (*bugs_model.BUGS, *bugs_training.BUGS, *bugs_decoding.BUGS),
    "transformer": (*bugs_transformer.BUGS, *bugs_translation.BUGS, *bugs_beam.BUGS),
    "bert": tuple(bugs_bert.BUGS),
}
"""The bugs planted in what is proven of each model."""

WIDER = dataclasses.replace(TINY, vocab_size=32, context_length=12, width=32, mlp_width=64)
"""For bfloat16: errors of more numbers depend less on chance."""


class Report(NamedTuple):
    """All that was measured and found."""

    rows: list[Row]
    mutants: list[MutantResult]
    settings: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether every row is in bounds and every planted bug was caught and named."""
        return all_ok(self.rows) and bool(self.mutants) and all(m.ok for m in self.mutants)


def run(model: str, dtypes: Iterable[DType], progress: Callable[[str], None]) -> Report:
    """Run every proof of a model (or `all`) in each type, then plant its bugs.

    Args:
        model: a name in MODELS, or `all`.
        dtypes: the types.
        progress: called with the name of what runs next.

    Raises:
        UserError: for a model that is not there.
    """
    if model != "all" and model not in MODELS:
        raise UserError(
            f"there is no {model} model to prove yet: choose {', '.join(MODELS)} or all"
        )
    start_jax()
    names = list(MODELS) if model == "all" else [model]
    rows, mutants = [], []
    for name in names:
        for dtype in dtypes:
            for proof, case in _proofs(MODELS[name], dtype):
                progress(f"{name} {dtype} {proof.__name__.removeprefix('prove_')}")
                found = prove_pooled(proof, case) if dtype == "bfloat16" else proof(case)
                # The layers of a model are reported as part of it.
                rows += [row._replace(model=name) for row in found.rows]
    for bug in [bug for name in names for bug in BUGS[name]]:
        progress(f"planted bug: {bug.name}")
        mutants.append(run_mutant(bug))
    return Report(rows, mutants, described())


def _proofs(subjects: Iterable[Subject], dtype: DType) -> Iterator[tuple[Proof, Case]]:
    for subject in subjects:
        if dtype != "bfloat16":
            yield from subject(Case(TINY, dtype, jit=False))
        elif subject in BFLOAT16_SUBJECTS:
            yield from subject(Case(WIDER, dtype, length=12, jit=False))
