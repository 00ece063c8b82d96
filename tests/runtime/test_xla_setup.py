"""`--deterministic`: the flag stands before jax starts, or the run is refused; reruns are equal."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxformer import checkpoint
from jaxformer.errors import UserError
from jaxformer.runtime import xla_setup
from jaxformer.runtime.xla_setup import FLAG, check_flags, make_deterministic
from tests.run.tiny import flags, tiny_config, whole_state

RECIPE = """
import os, sys
from train import gpt_char
status = gpt_char.main(sys.argv[1:])
print(os.environ["XLA_FLAGS"])
sys.exit(status)
"""


def test_two_new_processes_end_in_the_same_state(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=4)
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    environment |= {"JAXFORMER_CACHE": str(tmp_path / "cache")}
    hashes = set()
    for run in ("one", "two"):
        words = [*flags(config, tmp_path / run), "--deterministic"]
        process = subprocess.run(
            [sys.executable, "-c", RECIPE, *words], capture_output=True, text=True, env=environment
        )
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.endswith(f"--xla_cpu_enable_fast_math=false {FLAG}=true\n")
        hashes.add(checkpoint.state_hash(whole_state(config, tmp_path / run)))
    assert len(hashes) == 1


def test_jax_reads_the_flags_when_it_starts_not_when_it_is_imported() -> None:
    code = "import os, jaxformer.run.loop, jax\n"
    code += "os.environ['XLA_FLAGS'] = '--xla_no_such_flag=1'\njax.devices()"
    words = [sys.executable, "-c", code]
    process = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert process.returncode != 0
    assert "xla_no_such_flag" in process.stderr


def test_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    jax.devices()
    before = os.environ["XLA_FLAGS"]
    with pytest.raises(UserError, match=r"already started.*set XLA_FLAGS=.*=true before"):
        make_deterministic()
    assert os.environ["XLA_FLAGS"] == before
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false {FLAG}=true")
    make_deterministic()


@pytest.mark.parametrize("value", ["false", "0"])
def test_the_opposite_flag_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}={value}")
    with pytest.raises(UserError, match=f"XLA_FLAGS has {FLAG}={value}: leave that out"):
        make_deterministic()


@pytest.fixture
def not_started(monkeypatch):
    monkeypatch.setattr(xla_setup, "backends_are_initialized", lambda: False)


@pytest.mark.parametrize(
    "known",
    [
        "",
        "  ",
        f"--xla_force_host_platform_device_count=8 {FLAG}=true",
        "--xla_cpu_multi_thread_eigen=false --xla_dump_to='a b' --xla_gpu_autotune_level=0",
        "a_file_of_flags --xla_no_such_flag",
        "--xla_dump_to='a",
    ],
)
def test_flags_that_xla_knows_pass(known, not_started, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", known)
    check_flags()


def test_a_flag_that_xla_does_not_know_is_named(not_started, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG} --xla_no_such_flag=1 --typo")
    with pytest.raises(UserError, match="XLA_FLAGS has --xla_no_such_flag=1 --typo, "):
        check_flags()


def test_an_unknown_flag_is_one_line_and_status_2() -> None:
    code = (
        "from jaxformer.cli.arguments import run_command; "
        "from jaxformer.runtime.jax_setup import start_jax; run_command('jaxformer', start_jax)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_no_such_flag"},
    )
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert "XLA_FLAGS has --xla_no_such_flag" in process.stderr
