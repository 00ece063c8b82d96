"""Training: the optimizer, the mesh, the checkpoints, and a whole run of each kind."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from jaxformer.config.checks import (
    Bounds,
    NaturalInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Split,
    check_fields,
)
from jaxformer.config.data import (
    CopyConfig,
    DataConfig,
    MaskedDataConfig,
    NumbersConfig,
    TextPairsConfig,
)
from jaxformer.config.decoder import DecoderConfig
from jaxformer.config.models import BertConfig, GPTConfig, ModelConfig, TransformerConfig
from jaxformer.errors import UserError

KernelOptimizer = Literal["adamw", "muon"]
ScheduleKind = Literal["cosine", "stable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, decay and clipping (Loshchilov & Hutter 2019, algorithm 2), or Muon."""

    peak_learning_rate: PositiveFloat = 1e-3
    """Learning rate at the end of the warm-up."""
    floor_learning_rate: NonNegativeFloat = 1e-4
    """Learning rate at the end of the schedule."""
    schedule: ScheduleKind = "cosine"
    """After the warm-up half a cosine, or the peak until a linear decay at the end (`stable`)."""
    decay_fraction: Split = 0.2
    """Share of the steps, the last ones, over which `stable` decays."""
    warmup_steps: NaturalInt = 100
    """Steps of linear warm-up."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.99
    """Decay of the second moment."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay, applied to matrices only."""
    clip_norm: PositiveFloat = 1.0
    """Largest global norm of the gradient."""
    kernels: KernelOptimizer = "adamw"
    """What updates the kernels between hidden states; all other parameters are AdamW's."""
    momentum: Probability = 0.95
    """`muon`: decay of the momentum."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoamConfig:
    """Adam with the schedule of 2017: warm-up, then the inverse root (section 5.3)."""

    factor: PositiveFloat = 1.0
    """Multiplies the schedule D^-0.5 min(s^-0.5, s w^-1.5)."""
    warmup_steps: PositiveInt = 4000
    """w, the steps of linear warm-up."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.98
    """Decay of the second moment."""
    epsilon: PositiveFloat = 1e-9
    """Added to the root of the second moment."""
    clip_norm: PositiveFloat | None = None
    """Largest global norm of the gradient; 2017 does not clip."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 takes all that are left."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share the parameters of one copy and split the batch further."""
    tensor: int = 1
    """Devices that share each layer's heads and feed-forward width."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: PositiveInt = 3
    """Newest checkpoints kept of those every `every` steps, besides the last one and the one with
    the best validation loss."""

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """Training losses far above their running mean."""

    deviations: PositiveFloat = 6.0
    """Standard deviations above the mean of about 100 steps that make a loss a spike; none is
    detected in the first 69 losses."""
    skip: bool = False
    """Make no update from a spike's gradient; otherwise it is only noted."""

    def __post_init__(self) -> None:
        check_fields(self, "spikes.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has; each kind of run has a config of its own (`RUN_CONFIGS`)."""

    kind: ClassVar[str]
    """The first key of config.json."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    spikes: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)
    steps: PositiveInt = 2000
    """Optimizer steps of the whole schedule; `--resume` with more of them extends the run."""
    accumulation: PositiveInt = 1
    """Slices the batch is cut into, one after the other, to save memory."""
    eval_every: PositiveInt = 250
    """Steps between validation losses."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the initial weights, the dropout and the order of the data."""
    init_from: Path | None = None
    """Begin with other weights than random ones: those of a run's newest checkpoint, or of a
    safetensors file (or the index of several) with the names of the twin or of Hugging Face."""
    model: ModelConfig
    data: Any
    """Where the data come from; every kind has its own."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """A run on windows of a text."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    batch_size: PositiveInt = 12
    """Sequences in a step, over all devices and accumulation slices."""
    eval_tokens: PositiveInt = 2**20
    """Validation tokens scored each time; `jaxformer evaluate` always scores all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch-size {self.batch_size} is not divisible by accumulation "
                f"{self.accumulation}: choose a batch size that is a multiple of it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRunConfig(TextConfig):
    """A run of a language model on text; the kinds differ in their model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(TextRunConfig):
    """A run of a GPT on text."""

    kind = "gpt"
    model: GPTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLanguageConfig(TextRunConfig):
    """A run of a decoder of today's parts on text."""

    kind = "decoder"
    model: DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLanguageConfig(TextConfig):
    """A run of BERT on text of which some tokens are masked."""

    kind = "bert"
    model: BertConfig
    data: MaskedDataConfig = dataclasses.field(default_factory=MaskedDataConfig)


LossKind = Literal["cross_entropy", "kl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationConfig(RunConfig):
    """A run of an encoder-decoder Transformer on pairs of texts; the kinds differ in their data."""

    model: TransformerConfig
    data: TextPairsConfig | NumbersConfig | CopyConfig
    optimizer: NoamConfig = dataclasses.field(default_factory=NoamConfig)
    loss: LossKind = "cross_entropy"
    """Label smoothing as torch spreads it, over all V tokens, or as the KL divergence of the
    Annotated Transformer, over all but the target and the padding token."""
    label_smoothing: Probability = 0.1
    """Share of the target's probability that is spread over other tokens (section 5.4)."""
    batch_tokens: PositiveInt = 4096
    """Most source tokens, and most target tokens, of a step, padding included; never fewer than 8
    pairs."""
    batch_size: PositiveInt | None = None
    """Pairs in a step, whatever their length, instead of as many as `batch-tokens` allow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTranslationConfig(TranslationConfig):
    """A run on two parallel text files."""

    kind = "transformer_text"
    data: TextPairsConfig = dataclasses.field(default_factory=TextPairsConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumbersTranslationConfig(TranslationConfig):
    """A run on numbers and dates in words."""

    kind = "transformer_numbers"
    data: NumbersConfig = dataclasses.field(default_factory=NumbersConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyTranslationConfig(TranslationConfig):
    """A run on random strings that are to be copied or reversed."""

    kind = "transformer_copy"
    data: CopyConfig = dataclasses.field(default_factory=CopyConfig)


RUN_CONFIGS: Mapping[str, type[RunConfig]] = {
    config.kind: config
    for config in (
        LanguageConfig,
        DecoderLanguageConfig,
        MaskedLanguageConfig,
        TextTranslationConfig,
        NumbersTranslationConfig,
        CopyTranslationConfig,
    )
}
"""The config of every kind of run; jaxformer/tasks/kinds.py says what such a run does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How this process finds the others of its run; by default it is alone."""

    auto: bool = False
    """Find the others by the environment that SLURM, Open MPI or Kubernetes give each process."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens and the others find it."""
    processes: PositiveInt | None = None
    """Processes of the run."""
    process: int | None = None
    """Which of them this is, counted from 0."""
    timeout: PositiveInt = 120
    """Seconds to wait at the start for all processes to connect."""

    def __post_init__(self) -> None:
        check_fields(self, "distributed.")
        explicit = (self.coordinator, self.processes, self.process)
        if self.auto and explicit != (None, None, None):
            raise UserError("--distributed.auto finds the others itself: leave out the other flags")
        if explicit == (None, None, None):
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise UserError(
                "--distributed.coordinator, --distributed.processes and --distributed.process "
                "belong together: give all three, or --distributed.auto"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError(
                f"distributed.coordinator {self.coordinator} is not an address: give HOST:PORT"
            )
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"distributed.process {self.process} is not one of {self.processes} processes: "
                f"choose one from 0 to {self.processes - 1}"
            )

    @property
    def wanted(self) -> bool:
        """Whether there are others to find."""
        return self.auto or self.coordinator is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run lives and how far this process takes it; not part of what is learned."""

    run_dir: Path
    """Directory of the run: config, tokenizer, metrics, checkpoints and curves."""
    stop_after: PositiveInt | None = None
    """End cleanly, checkpoint written, after this many steps of the schedule."""
    resume: bool = False
    """Continue the run that the directory holds from its newest checkpoint."""
    max_skipped: PositiveInt = 10
    """End the run after this number of skipped updates in a row, for a loss or gradient that is not
    finite or a spike."""
    log_every: PositiveInt = 1
    """Steps between the lines of training steps in metrics.jsonl; the last step, and those that are
    skipped or a spike, have one in any case."""
    deterministic: bool = False
    """Make reruns equal to the last bit on GPUs too, by slower kernels."""
    compile_cache: bool = True
    """Keep compiled programs, at most 1 GB, for the next run: in $JAXFORMER_CACHE, by default
    $XDG_CACHE_HOME/jaxformer or ~/.cache/jaxformer, or where JAX_COMPILATION_CACHE_DIR says."""
    restarts: NaturalInt = 0
    """Times that a run which crashes is started again from its newest checkpoint."""
    profile: str | None = None
    """Steps FIRST:LAST to trace: a file for https://ui.perfetto.dev goes to the run directory, and
    the operations that took longest are printed."""
    watchdog: PositiveFloat = 600.0
    """Seconds without progress after which the process writes its stacks and ends; the first step
    and the first evaluation also compile and may take 15 minutes more."""
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.profiled_steps

    @property
    def profiled_steps(self) -> range:
        """The steps of `profile`; none without it.

        Raises:
            UserError: they are not two steps, the first before the last.
        """
        if self.profile is None:
            return range(0)
        found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", self.profile)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise UserError(
                f"profile {self.profile!r} is not FIRST:LAST: name two steps from 1 on, as in 5:8"
            )
        return range(first, last + 1)
