"""docs/hosts.md: its SLURM script runs as printed, its JobSet manifest starts a valid recipe."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxformer.cli.recipes import parse_recipe
from jaxformer.config import DistributedConfig
from tests.processes import SIZES, TEXT, free_port, rows
from train import gpt_char

HOSTS = (Path(__file__).parent.parent / "docs" / "hosts.md").read_text(encoding="utf-8")
PYTHON = str(Path(sys.executable).parent)
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & started+=($!)
done
status=0
for process in "${started[@]}"; do
    wait $process; ended=$?
    if [ $ended -gt $status ]; then status=$ended; fi
done
exit $status
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", HOSTS, flags=re.MULTILINE | re.DOTALL)


def test_the_manifest_starts_a_recipe_with_distributed_auto():
    *_, jobset = yaml.safe_load_all(*blocks("yaml"))
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 2
    assert job["completionMode"] == "Indexed"  # JAX takes the process index from it
    (refused,) = job["podFailurePolicy"]["rules"]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [2])
    (final,) = jobset["spec"]["failurePolicy"]["rules"]
    assert final == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (container,) = job["template"]["spec"]["containers"]
    (script,) = container["args"]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    _, _, flags = script.replace("$resume", "").partition("jaxformer train gpt_char")
    words = shlex.split(flags.replace("\\\n", ""))
    config, options = parse_recipe(gpt_char.PRESETS, words, gpt_char.__file__, "")
    assert options.distributed == DistributedConfig(auto=True)
    assert config.batch_size % (2 * container["resources"]["limits"]["nvidia.com/gpu"]) == 0


@pytest.mark.slow
def test_the_slurm_script_trains_resumes_and_requeues_itself(tmp_path):
    for name, script in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> requeued\n'}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (batch_file,) = (block for block in blocks("sh") if "#SBATCH" in block)
    batch_file = batch_file.replace("/shared/runs/gpt", "run").replace("/shared/", "")
    small = shlex.join([*SIZES, "--steps", "9", "--stop-after"])
    batch_file = batch_file.replace("--preset gpu", f"{small} $STOP --data.tokenizer characters")
    batch_file = batch_file.replace("--batch-size 128", "").replace("--mesh.fsdp 8", "")
    port = free_port()
    slurm = {
        "PATH": os.pathsep.join((str(tmp_path), PYTHON, os.environ["PATH"])),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(port),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }
    for stop, first in (("4", 1), ("9", 5)):
        words = ["bash", "-c", batch_file]
        environment = {**os.environ, **slurm, "STOP": stop}
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert ("resumed from step 4" in done.stdout) == (first == 5)
        steps = [row["step"] for row in rows(tmp_path / "run") if row["split"] == "train"]
        assert steps == list(range(1, int(stop) + 1))
    done = subprocess.run(  # other settings than the run has: refused, and not requeued
        ["bash", "-c", batch_file.replace("--seed 3", "--seed 4")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "requeued").exists()
    tries = [(75, 0, 1), (137, 19, 2), (75, 20, 2), (143, 20, 3), (1, 0, 4), (130, 0, 4), (2, 0, 4)]
    for status, restarts, queued in tries:
        failing = batch_file.replace("jaxformer train", "failing train")
        (tmp_path / "failing").write_text(f"#!/bin/bash\nexit {status}\n")
        (tmp_path / "failing").chmod(0o755)
        counted = environment | {"SLURM_RESTART_COUNT": str(restarts)}
        done = subprocess.run(["bash", "-c", failing], cwd=tmp_path, env=counted)
        assert done.returncode == status
        assert (tmp_path / "requeued").read_text() == "requeue 7\n" * queued
