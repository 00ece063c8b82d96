"""What is proven, what is planted, and the run of it all."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

from jaxformer.errors import UserError
from jaxformer.parity.bugs import attention as bugs_attention
from jaxformer.parity.bugs import beam as bugs_beam
from jaxformer.parity.bugs import bert as bugs_bert
from jaxformer.parity.bugs import decoder as bugs_decoder
from jaxformer.parity.bugs import decoding as bugs_decoding
from jaxformer.parity.bugs import gpt as bugs_gpt
from jaxformer.parity.bugs import layers as bugs_layers
from jaxformer.parity.bugs import muon as bugs_muon
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
    decoder,
    decoder_layers,
    decoding,
    gpt,
    layers,
    losses,
    optimizers,
    resume,
    training,
    transformer,
)
from jaxformer.parity.proofs.named_layers import LAYERS
from jaxformer.porting.compare import DType, Row, all_ok
from jaxformer.runtime.jax_setup import start_jax

Subject = Callable[[Case], list[tuple[Proof, Case]]]

MODELS: Mapping[str, tuple[Subject, ...]] = {
    "gpt": (
        layers.proofs,
        layers.position_proofs,
        gpt.proofs,
        losses.proofs,
        optimizers.proofs,
        training.gpt_proofs,
        decoding.proofs,
        resume.proofs,
    ),
    "transformer": (
        layers.proofs,
        layers.transformer_proofs,
        transformer.proofs,
        losses.proofs,
        losses.smoothing_proofs,
        optimizers.adam_proofs,
        training.transformer_proofs,
        resume.transformer_proofs,
        beam.proofs,
    ),
    "bert": (
        layers.proofs,
        layers.position_proofs,
        bert.proofs,
        losses.proofs,
        optimizers.proofs,
        training.bert_proofs,
    ),
    "decoder": (
        decoder_layers.proofs,
        decoder.proofs,
        losses.proofs,
        optimizers.proofs,
        optimizers.muon_proofs,
        training.decoder_proofs,
        decoder.decoding_proofs,
    ),
}
"""What is proven of each model: its layers, the whole, and all that is done with it."""

BFLOAT16_SUBJECTS = (
    layers.proofs,
    layers.position_proofs,
    gpt.proofs,
    layers.transformer_proofs,
    transformer.proofs,
    bert.proofs,
    decoder_layers.proofs,
    decoder.proofs,
)
"""Subjects with a float64 truth to measure bfloat16 against; the path of an optimizer has none."""

SHARED_BUGS = (
    *bugs_layers.BUGS,
    *bugs_attention.BUGS,
    *bugs_training.LOSS_BUGS,
    *bugs_training.STEP_BUGS,
)
BUGS: Mapping[str, tuple[Bug, ...]] = {
    "gpt": (*SHARED_BUGS, *bugs_gpt.BUGS, *bugs_training.ADAMW_BUGS, *bugs_decoding.BUGS),
    "transformer": (
        *SHARED_BUGS,
        *bugs_transformer.BUGS,
        *bugs_translation.BUGS,
        *bugs_beam.BUGS,
    ),
    "bert": (*SHARED_BUGS, *bugs_bert.BUGS, *bugs_training.ADAMW_BUGS),
    "decoder": (
        *SHARED_BUGS,
        *bugs_decoder.BUGS,
        *bugs_training.ADAMW_BUGS,
        *bugs_muon.BUGS,
    ),
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


Progress = Callable[[int, int, str], None]
"""Called with how many of how many are done, and the name of what runs next."""


def run(
    model: str, dtypes: Iterable[DType], progress: Progress, layer: str | None = None
) -> Report:
    """Run every proof of a model (or `all`) in each type, then plant its bugs.

    What several models have is proven and planted once, under the first of them.

    Args:
        model: a name in MODELS, or `all`.
        dtypes: the types.
        progress: called before each proof and each bug.
        layer: a name in `LAYERS`, to prove it and plant its bugs alone.

    Raises:
        UserError: for a model that is not there, a layer that it does not have, and where nothing
            would be proven.
    """
    dtypes = list(dtypes)
    if model != "all" and model not in MODELS:
        raise UserError(f"--model {model} is unknown: choose {', '.join(MODELS)} or all")
    names = list(MODELS) if model == "all" else [model]
    if layer is not None and layer not in (known := layers_of(names)):
        owner = "any model" if model == "all" else model
        raise UserError(f"--layer {layer} is no layer of {owner}: choose {', '.join(known)}")
    steps = [(name, *step) for dtype in dtypes for name, step in proofs_of(names, dtype, layer)]
    if not steps:
        what = f"--model {model}" if layer is None else f"--layer {layer}"
        others = [dtype for dtype in get_args(DType) if any(proofs_of(names, dtype, layer))]
        raise UserError(
            f"{what} has no proof in --dtype {', '.join(dtypes)}: choose {' or '.join(others)}"
        )
    start_jax()
    bugs = bugs_of(names, layer)
    rows, mutants, total = [], [], len(steps) + len(bugs)
    for number, (name, proof, case) in enumerate(steps):
        progress(number, total, f"{name} {case.dtype} {proof.__name__.removeprefix('prove_')}")
        found = prove_pooled(proof, case) if case.dtype == "bfloat16" else proof(case)
        # The layers of a model are reported as part of it.
        rows += [row._replace(model=name) for row in found.rows]
    for number, bug in enumerate(bugs, len(steps)):
        progress(number, total, f"planted bug: {bug.name}")
        mutants.append(run_mutant(bug))
    return Report(rows, mutants, described())


def proofs_of(
    names: Iterable[str], dtype: DType, layer: str | None = None
) -> Iterator[tuple[str, tuple[Proof, Case]]]:
    """Every proof of the models, or of one of their layers, once, with its model and its case."""
    owner = {subject: name for name in reversed(list(names)) for subject in MODELS[name]}
    for name in names:
        for subject in MODELS[name]:
            if owner[subject] != name:
                continue
            for proof, case in _proofs(subject, dtype):
                if layer is None or proof in LAYERS[layer].proofs:
                    yield name, (proof, case)


def bugs_of(names: Iterable[str], layer: str | None = None) -> list[Bug]:
    """The bugs of the models, or of one of their layers, once."""
    bugs = dict.fromkeys(bug for name in names for bug in BUGS[name])
    return [bug for bug in bugs if layer is None or re.fullmatch(LAYERS[layer].named, bug.layer)]


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers of the models that can be proven alone."""
    return [name for name in LAYERS if any(proofs_of(names, "float32", name))]


def _proofs(subject: Subject, dtype: DType) -> list[tuple[Proof, Case]]:
    if dtype != "bfloat16":
        return subject(Case(TINY, dtype, jit=False))
    if subject in BFLOAT16_SUBJECTS:
        return subject(Case(WIDER, dtype, length=12, jit=False))
    return []
