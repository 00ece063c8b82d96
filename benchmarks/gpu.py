"""One part of what benchmarks/gpu.sh measures on a machine with a GPU.

    python -m benchmarks.gpu train --output DIR
    python -m benchmarks.gpu train --output DIR --rehearse    # tiny, on the CPU

    train      char-gpu and gpt2 124M (B 16, T 1024) beside transformers' GPT-2, compiled: bfloat16,
               flash attention, fused AdamW; tokens/s, MFU, memory
    decode     gpt2 and gpt2-xl at batch 1 and 64 beside transformers, weights in bfloat16
    resume     a run of gpt_char, preset gpu, with --deterministic: straight, and stopped and
               resumed; equal to the last bit?
    plan       what `jaxformer plan` says a step takes, and what two steps took
    float64, float32    the proofs of the parity report, without planted bugs

Each part writes NAME.json whenever something of it is done, so that a run that is cut off keeps
what it had. The exit status is 0 if all that was measured holds.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import decoding, machine
from benchmarks.comparison import Benchmark
from benchmarks.train_step import CHAR, Case, measure
from jaxformer.atomic import atomic_write
from jaxformer.config import GPT_PRESETS, GPTConfig

TINY = GPTConfig(
    vocab_size=97, context_length=32, width=32, num_heads=2, mlp_width=64, num_layers=2
)
MODELS = {
    "char-gpu": (CHAR["gpu"], 64),
    "gpt2": (GPT_PRESETS["gpt2"], 16),
    "gpt2-xl": (GPT_PRESETS["gpt2-xl"], 4),
}
"""Model and batch size of a train step."""
NEW_TOKENS = 128
SMALL_RUN = [
    *("--model.width", "32", "--model.num-heads", "2", "--model.mlp-width", "32"),
    *("--model.num-layers", "1", "--model.context-length", "32", "--batch-size", "8"),
    *("--eval-tokens", "512"),
]


class Part:
    """The arguments of a part, and its file."""

    def __init__(self, words: argparse.Namespace):
        self.words = words
        self.device = "cpu" if words.rehearse else "cuda"

    def write(self, values: Any) -> None:
        """What is known so far."""
        with atomic_write(self.words.output / f"{self.words.part}.json") as file:
            file.write(json.dumps(values, indent=1).encode())

    def benchmark(self) -> Benchmark:
        """A benchmark with the name of the part."""
        self.words.repetitions = 2 if self.words.rehearse else 7
        return Benchmark(self.words.part, self.words)

    def some(self, cases: list[Any]) -> list[Any]:
        """The cases; in a rehearsal, where all are the same tiny model, the first of them."""
        return cases[:1] if self.words.rehearse else cases

    def model(self, name: str) -> tuple[GPTConfig, int]:
        """A model without dropout in bfloat16, and its batch size; tiny in a rehearsal."""
        config, batch_size = (TINY, 2) if self.words.rehearse else MODELS[name]
        return dataclasses.replace(config, dropout_rate=0.0, dtype="bfloat16"), batch_size


def train(part: Part) -> int:
    """Train steps."""
    benchmark = part.benchmark()
    n = 256 if part.words.rehearse else 8192
    machine.measure(benchmark, n, "bfloat16", part.device)
    for name, steps in part.some([("char-gpu", 20), ("gpt2", 5)]):
        config, batch_size = part.model(name)
        case = Case("gpt", config, batch_size, config.context_length, steps)
        form = "eager" if part.words.rehearse else "compiled"
        measure(benchmark, name, case, device=part.device, forms=(form,))
    return benchmark.end()


def decode(part: Part) -> int:
    """Greedy decoding."""
    benchmark = part.benchmark()
    for name in part.some(["gpt2", "gpt2-xl"]):
        for batch_size in part.some([1, 64]):
            config, _ = part.model(name)
            new_tokens = 8 if part.words.rehearse else NEW_TOKENS
            decoding.measure(benchmark, name, config, batch_size, new_tokens, part.device)
    return benchmark.end()


def resume(part: Part) -> int:
    """A run and its double, which is stopped and resumed."""
    from jaxformer.monitor.metrics import read_metrics

    steps = 6 if part.words.rehearse else 600
    found: dict[str, Any] = {"steps": steps, "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text.write_text("".join(path.read_text("utf-8") for path in library[:60]), "utf-8")
        flags = [
            *("--preset", "gpu", "--data.path", str(text), "--steps", str(steps)),
            *("--checkpoint.every", str(steps), "--eval-every", str(steps)),
            *("--eval-tokens", "65536", "--deterministic"),
            *(SMALL_RUN if part.words.rehearse else ()),
        ]

        def run(what: str, name: str, *words: str) -> None:
            command = [sys.executable, "-m", "jaxformer", "train", "gpt_char", *flags, *words]
            begun = time.perf_counter()
            subprocess.run([*command, "--run-dir", str(Path(folder) / name)], check=True)
            found["seconds"][what] = time.perf_counter() - begun
            part.write(found)

        run("straight", "straight")
        run("first half", "halves", "--stop-after", str(steps // 2))
        run("second half", "halves", "--resume")
        rows = {
            name: [
                (row["step"], row["split"], row["loss"], row.get("grad_norm"))
                for row in read_metrics(Path(folder) / name / "metrics.jsonl")
            ]
            for name in ("straight", "halves")
        }
        straight, halves = (_parameters(Path(folder) / name) for name in rows)
    found["last_loss"] = rows["straight"][-1][2]
    found["equal_losses"] = rows["straight"] == rows["halves"]
    found["equal_parameters"] = straight == halves
    part.write(found)
    return 0 if found["equal_losses"] and found["equal_parameters"] else 1


def _parameters(run_dir: Path) -> list[bytes]:
    from jaxformer.run.load import load_run

    return [
        leaf.tobytes() for leaf in map(jax.device_get, jax.tree.leaves(load_run(run_dir).params))
    ]


def plan(part: Part) -> int:
    """The memory that a step takes, planned and used."""
    found = {}
    for name, words in {
        "char-gpu": ["gpt_char", "--preset", "gpu", "--model.vocab-size", "65"],
        "gpt2": ["gpt2_124m", "--batch-size", "16", "--accumulation", "1"],
    }.items():
        words = [*words, *(SMALL_RUN[:-2] if part.words.rehearse else ())]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.json"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "jaxformer",
                    "plan",
                    *words,
                    "--gpu",
                    "H100",
                    "--check",
                    "--json",
                    str(path),
                ],
                check=True,
            )
            found[name] = json.loads(path.read_text())
        part.write(found)
    return 0


def parity(part: Part) -> int:
    """The proofs of all models in one type."""
    from jaxformer.parity.report import MODELS as PROVEN
    from jaxformer.parity.report import proofs_of
    from jaxformer.parity.show import nearness
    from jaxformer.runtime.jax_setup import start_jax

    start_jax()
    steps = list(proofs_of(list(PROVEN), part.words.part))
    rows: list[Any] = []
    steps = steps[:2] if part.words.rehearse else steps
    for number, (name, (proof, case)) in enumerate(steps, start=1):
        rows += [row._replace(model=name) for row in proof(case).rows]
        bad = [row for row in rows if not row.ok]
        part.write(
            {
                "device": jax.devices()[0].device_kind,
                "proofs": number,
                "of": len(steps),
                "values": len(rows),
                "out_of_bounds": [row._asdict() for row in bad],
                "nearest": [row._asdict() for row in sorted(rows, key=nearness)[-20:]],
            }
        )
    return 1 if bad else 0


PARTS: dict[str, Callable[[Part], int]] = {
    "train": train,
    "decode": decode,
    "resume": resume,
    "plan": plan,
    "float64": parity,
    "float32": parity,
}


def main() -> int:
    """Measure a part."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("part", choices=PARTS)
    flags.add_argument("--output", type=Path, required=True, help="directory of the files")
    flags.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    words = flags.parse_args()
    words.output.mkdir(parents=True, exist_ok=True)
    if words.rehearse or words.part in ("train", "decode", "resume"):
        # The sides and runs are processes of their own: this one leaves the GPU to them.
        jax.config.update("jax_platforms", "cpu")
    return PARTS[words.part](Part(words))


if __name__ == "__main__":
    sys.exit(main())
