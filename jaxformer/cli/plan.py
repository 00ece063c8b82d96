"""`jaxformer plan RECIPE --devices N`: memory, work and time of a recipe, without a device."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jaxformer.cli.arguments import parse
from jaxformer.cli.help import HELP
from jaxformer.cli.outputs import json_output
from jaxformer.cli.recipes import RECIPES, load_recipe, parse_beside, preset_name
from jaxformer.config.checks import Bounds, PositiveFloat, Probability, check_fields
from jaxformer.errors import UserError
from jaxformer.planning.hardware import GPUS
from jaxformer.terminal import say
from jaxformer.units import count, short_time, size

if TYPE_CHECKING:  # jax starts slowly, and only once its devices are counted
    import jax

    from jaxformer.config import RunConfig
    from jaxformer.planning.kernels import Kernels
    from jaxformer.planning.plan import Plan
    from jaxformer.planning.roofline import Prediction
    from jaxformer.planning.suggest import Suggestion
    from jaxformer.planning.verify import Measured

PROG = "jaxformer plan"
MOST_DEVICES = 1024
"""Each simulated device has threads of its own."""
LARGEST = 8
"""Arrays of the GPU's program that are listed."""
A_MACHINE = 8
"""Devices that a machine has at most."""
DESCRIPTION = (
    "Compile a recipe's train step for simulated devices, without its data and without allocating "
    "the model, and print what it takes of each: memory, work, and a prediction of its time on a "
    f"GPU. RECIPE is one of {', '.join(RECIPES)}, or a file of your own that ends in .py; its own "
    "flags (--preset, --mesh.fsdp, --batch-size, --model.width, ...) follow it: jaxformer plan "
    "RECIPE --help."
)
USUAL = (
    *("--preset", "--config", "--print-config", "--devices", "--gpu", "--link", "--reserve"),
    *("--compiler", "--check", "--json", "--batch-*", "--accumulation", "--mesh.*"),
    *("--model.dtype", "--model.remat", "--model.vocab-size", "--model.context-length"),
)
"""Patterns of the flags that `--help` shows after a recipe."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The flags of `jaxformer plan` beside those of the recipe."""

    devices: Annotated[int, Bounds(1, MOST_DEVICES)] = 1
    """Devices of the run."""
    gpu: str = "A100-80GB"
    """The kind of them, by its name in the table of jaxformer/planning/hardware.py."""
    link: PositiveFloat | None = None
    """GB/s that a device sends to the others, instead of the table's value for one machine."""
    compiler: Literal["auto", "cpu", "gpu"] = "auto"
    """Which of XLA's compilers says what memory, kernels and collectives the step takes: `cpu`, in
    seconds, or `gpu`, in minutes, which needs jax's CUDA plugin and no GPU; by default the latter
    if it is installed."""
    reserve: Probability = 0.25
    """Share of a GPU's memory that the run cannot have. By default jax takes three quarters of the
    memory (XLA_PYTHON_CLIENT_MEM_FRACTION) and leaves 0.25."""
    check: bool = False
    """Also run two steps on the devices that are here, and print what they used."""
    json: Path | None = None
    """File for all figures."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.gpu not in GPUS:
            raise UserError(f"gpu {self.gpu} is unknown: choose one of {', '.join(GPUS)}")
        if self.compiler == "gpu" and GPUS[self.gpu].chip is None:
            known = ", ".join(name for name, gpu in GPUS.items() if gpu.chip is not None)
            raise UserError(
                f"--compiler gpu has no figures of {self.gpu}'s chip: choose --compiler cpu, or "
                f"--gpu with one of {known}"
            )


def main(argv: Sequence[str]) -> int:
    """Print the plan; the exit status is 0, whether it fits or not.

    Raises:
        UserError: for a recipe, a GPU, a mesh or a batch that cannot be.
    """
    if not argv or argv[0] in HELP:
        parse(PlanOptions, ["--help"], f"{PROG} RECIPE", DESCRIPTION)
    if argv[0].startswith("-"):
        raise UserError(f"no recipe named first: choose one of {', '.join(RECIPES)}")
    config, options = read(argv)
    with json_output(options.json) as write_json:
        start_jax(options.devices, real=options.check)
        return report(argv[0], config, options, write_json)


def read(argv: Sequence[str]) -> "tuple[RunConfig, PlanOptions]":
    """The recipe's configuration and the options of the plan."""
    name, *words = argv
    presets = load_recipe(name).PRESETS
    prog = f"{PROG} {name}"
    chosen = preset_name(presets, words, prog)
    return parse_beside(
        PlanOptions(), presets, chosen, presets[chosen], words, prog, DESCRIPTION, USUAL
    )


def start_jax(devices: int, real: bool) -> None:
    """Let jax simulate CPU devices; it reads their number once, when it starts.

    Raises:
        UserError: if jax was started before, with fewer, or XLA_FLAGS has an unknown flag.
    """
    if "jax" not in sys.modules:
        os.environ.update(settings(os.environ, devices, real))
    import jax

    from jaxformer.runtime.xla_setup import check_flags

    check_flags()
    here = len(jax.devices("cpu"))
    if here < devices:
        raise UserError(
            f"jax was started with {here} simulated devices, not {devices}: plan in a process of "
            "its own"
        )


def settings(environment: Mapping[str, str], devices: int, real: bool) -> Mapping[str, str]:
    """What jax has to find in its environment, besides what is there.

    The simulated devices, and no search for others unless `real` ones are wanted too.
    """
    others = re.sub(
        r"--xla_force_host_platform_device_count=\S*", "", environment.get("XLA_FLAGS", "")
    )
    flags = f"{others} --xla_force_host_platform_device_count={devices}".strip()
    wanted = environment.get("JAX_PLATFORMS", "")
    if wanted and "cpu" not in wanted.split(","):
        wanted = f"{wanted},cpu"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": wanted if real else "cpu"}


def report(
    recipe: str,
    config: "RunConfig",
    options: PlanOptions,
    write_json: Callable[[Any], None],
) -> int:
    """Plan, predict, suggest and check, and print it all."""
    import jax

    from jaxformer.planning.gpu_compiler import INSTALL, by_gpu_compiler, described_devices
    from jaxformer.planning.plan import make_plan
    from jaxformer.planning.roofline import predict
    from jaxformer.planning.suggest import suggestions
    from jaxformer.planning.verify import run_two_steps

    gpu = GPUS[options.gpu]
    if options.link is not None:
        gpu = dataclasses.replace(gpu, link=options.link * 1e9)
    room = (1 - options.reserve) * gpu.memory
    simulated = jax.devices("cpu")[: options.devices]
    described_gpus = None
    if options.compiler != "cpu":
        described_gpus = described_devices(gpu, options.devices)
    if options.compiler == "gpu" and described_gpus is None:
        raise UserError(f"--compiler gpu needs jax's CUDA plugin: {INSTALL}")

    def make(config: "RunConfig") -> "Plan":
        with jax.default_device(simulated[0]):
            plan = make_plan(config, simulated)
        return plan if described_gpus is None else by_gpu_compiler(plan, config, described_gpus)

    def fits(plan: "Plan") -> bool:
        return plan.memory.total <= room

    here = real_devices(options.devices) if options.check else ()
    plan = make(config)
    prediction = predict(plan, gpu)
    found: dict[str, Any] = {
        "recipe": recipe,
        "gpu": options.gpu,
        "link": gpu.link,
        "room": room,
        "fits": fits(plan),
        **figures(plan, prediction),
    }
    say("\n".join([*described(recipe, plan), *predicted(plan, prediction, options)]))
    if fits(plan):
        print(f"fits: {size(plan.memory.total)} of {size(room)}")
    else:
        print(f"does not fit: {size(plan.memory.total)}, and there are {size(room)}")
        found["suggestions"] = []
        for one in suggestions(plan, make, fits):
            predicted_change = predict(one.plan, gpu)
            say(f"  {suggested(one, predicted_change)}")
            found["suggestions"].append(
                {"flags": one.flags, "fits": one.fits, **figures(one.plan, predicted_change)}
            )
    if here:
        used = run_two_steps(config, here)
        print("\n".join(checked(plan, used, here[0].device_kind)))
        found["used"] = used._asdict()
    write_json(found)
    return 0


def real_devices(number: int) -> "Sequence[jax.Device]":
    """Devices to check on: the accelerators that are here, else the simulated ones."""
    import jax

    here = jax.devices()
    if len(here) < number:
        raise UserError(f"--check needs {number} devices, and {len(here)} are here: plan for these")
    return here[:number]


def described(recipe: str, plan: "Plan") -> Iterator[str]:
    """What was compiled, and what it takes of a device."""
    from jaxformer.planning.gpu_compiler import INSTALL

    config, memory, (rows, length) = plan.config, plan.memory, plan.batch_shape
    mesh = " x ".join(f"{axis} {number}" for axis, number in plan.mesh.items())
    remat = config.model.remat
    rematerialised = "" if remat == "none" else f", rematerialised ({remat})"
    yield (
        f"{recipe}: {plan.num_parameters:,} parameters, {config.model.dtype}"
        f"{rematerialised} · mesh {mesh}"
    )
    yield (
        f"batches of {rows} x {length} at most, slices {config.accumulation} · compiled for "
        f"{plan.num_devices} simulated devices in {short_time(plan.seconds)}, nothing allocated"
    )
    if plan.gpu_program is None:
        yield f"by XLA's CPU compiler; its GPU compiler, which needs no GPU: {INSTALL}"
    else:
        yield (
            f"memory, kernels and collectives by XLA's GPU compiler for "
            f"{plan.gpu_program.device_kind}, in {short_time(plan.gpu_program.seconds)}"
        )
    yield "memory of a device"
    for name, number in memory._asdict().items():
        yield f"  {name:12} {size(number):>11}"
    yield f"  {'together':12} {size(memory.total):>11}"
    yield from undivided(plan)
    if plan.gpu_program is not None:
        yield from launched(plan.gpu_program.kernels)
    yield "work of a device in a step, by XLA's CPU compiler; a GPU's moves and sends less"
    yield f"  FLOPs        {count(plan.model_flops, 3):>9} by formula"
    if plan.compiled_flops:
        yield f"               {count(plan.compiled_flops, 3):>9} in the compiled program"
    yield f"  memory read and written {size(plan.traffic)}"
    for kind, total in plan.collectives.items():
        yield f"  {kind}: {total.number} times, {size(total.sent)} sent"


def launched(kernels: "Kernels") -> Iterator[str]:
    """What the GPU's program launches and the largest of the arrays that it writes."""
    from jaxformer.planning.hlo import array_bytes

    at_least = "at least " if kernels.at_least else ""
    yield f"{at_least}{kernels.total:,} kernels and library calls of a device in a step"
    for kind, number in kernels.launches.items():
        yield f"  {number:6,}  {kind}"
    yield "its largest arrays"
    for array, times in list(kernels.arrays.items())[:LARGEST]:
        yield f"  {size(array_bytes(array)):>10}  {array}, written {times:,} times"


def undivided(plan: "Plan") -> Iterator[str]:
    """What could be divided over the mesh were its size another."""
    vocabulary, ways = plan.config.model.vocab_size, plan.mesh["fsdp"] * plan.mesh["tensor"]
    if vocabulary % ways:
        padded = -(-vocabulary // ways) * ways
        yield (
            f"  every device holds the token embeddings whole, as {ways} does not divide "
            f"{vocabulary:,}: --model.vocab-size {padded}"
        )


def predicted(plan: "Plan", prediction: "Prediction", options: PlanOptions) -> Iterator[str]:
    """The prediction for the GPU."""
    rows, length = plan.batch_shape
    yield (
        f"predicted, not measured, on {options.gpu} ({prediction.product} products, peak "
        f"{prediction.peak / 1e12:g} TFLOP/s)"
    )
    yield (
        f"  compute {short_time(prediction.compute)} or memory {short_time(prediction.traffic)}, "
        f"the longer, + collectives {short_time(prediction.collectives)}"
    )
    yield (
        f"  step {short_time(prediction.step)}, {count(rows * length / prediction.step)} tokens/s, "
        f"MFU {prediction.mfu:.1%}"
    )
    if plan.num_devices > A_MACHINE and options.link is None:
        yield (
            f"  the {plan.num_devices} devices are taken to be linked as the {A_MACHINE} of a "
            "machine are; a network between machines is slower: give its speed with --link GB/S"
        )


def suggested(one: "Suggestion", prediction: "Prediction") -> str:
    """A change and what it leads to."""
    verdict = "fits" if one.fits else "does not fit"
    return (
        f"{one.flags}: {size(one.plan.memory.total)}, step {short_time(prediction.step)}, MFU "
        f"{prediction.mfu:.1%}: {verdict}"
    )


def checked(plan: "Plan", used: "Measured", kind: str) -> Iterator[str]:
    """Predicted beside used."""
    state = plan.memory.parameters + plan.memory.optimizer
    yield f"two steps on {kind}: predicted, used"
    rows: list[tuple[str, int, int | None]] = [
        ("parameters and optimizer", state, used.state),
        ("whole program", plan.memory.total, used.program),
        ("most held, compiling too", plan.memory.total, used.peak),
    ]
    for name, expected, seen in rows:
        if seen is None:
            yield f"  {name:24} {size(expected):>11} {'not counted':>11}"
        else:
            share = f"{expected / seen:.2f} times"
            yield f"  {name:24} {size(expected):>11} {size(seen):>11}  {share}"


def figures(plan: "Plan", prediction: "Prediction") -> Mapping[str, Any]:
    """All figures of a plan, in bytes, FLOPs and seconds."""
    return {
        "mesh": dict(plan.mesh),
        "batch_shape": list(plan.batch_shape),
        "accumulation": plan.config.accumulation,
        "remat": plan.config.model.remat,
        "memory": {**plan.memory._asdict(), "total": plan.memory.total},
        "model_flops": plan.model_flops,
        "compiled_flops": plan.compiled_flops,
        "traffic": plan.traffic,
        "collectives": {kind: total._asdict() for kind, total in plan.collectives.items()},
        "compile_seconds": plan.seconds,
        "gpu_program": plan.gpu_program and program_figures(plan),
        "predicted": {**dataclasses.asdict(prediction), "step": prediction.step},
    }


def program_figures(plan: "Plan") -> Mapping[str, Any]:
    """All figures of the program of XLA's GPU compiler."""
    assert plan.gpu_program is not None
    kernels = plan.gpu_program.kernels
    return {
        "device_kind": plan.gpu_program.device_kind,
        "compile_seconds": plan.gpu_program.seconds,
        "arguments": plan.memory.arguments,
        "temporaries": plan.memory.temporaries,
        "launches": kernels.total,
        "at_least": kernels.at_least,
        "launches_by_kind": kernels.launches,
        "custom_calls": kernels.custom_calls,
        "largest_arrays": dict(list(kernels.arrays.items())[:LARGEST]),
    }
