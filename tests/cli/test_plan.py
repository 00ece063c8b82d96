"""`jaxformer plan`: plans a recipe by its name, without its data."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import pytest

import jaxformer.cli.plan
from jaxformer.cli.main import main
from jaxformer.cli.plan import read, settings
from jaxformer.cli.recipes import RECIPES
from jaxformer.errors import UserError
from jaxformer.planning import gpu_compiler
from jaxformer.planning.hardware import GPUS
from jaxformer.planning.kernels import Kernels
from jaxformer.planning.plan import GPUProgram
from jaxformer.units import short_time

SIZES = {"width": 8, "num-heads": 2, "mlp-width": 16, "num-layers": 1, "context-length": 32}
TINY = [f"--model.{name}={size}" for name, size in SIZES.items()]
GPT = ["plan", "gpt_char", "--model.vocab-size", "16", "--batch-size", "16", *TINY]


def refusal(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    return err.partition("error: ")[2].strip()


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = ["--devices", "4", "--mesh.data", "2", "--mesh.fsdp", "-1", "--gpu", "H100"]
    main([*GPT, *words, "--json", str(file)])
    out, err = capsys.readouterr()
    found = json.loads(file.read_text())
    assert err == ""
    assert out.startswith("gpt_char: 1,000 parameters, float32 · mesh data 2 x fsdp 2 x tensor 1\n")
    assert "predicted, not measured, on H100" in out
    assert out.splitlines()[-1].startswith("fits: ")
    assert found["fits"] is True
    assert found["room"] == 0.75 * GPUS["H100"].memory
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["batch_shape"] == [16, 32]
    parts = {name: n for name, n in found["memory"].items() if name != "total"}
    assert sum(parts.values()) == found["memory"]["total"]
    for name in parts:
        assert f"\n  {name}" in out
    for kind, total in found["collectives"].items():
        assert f"{kind}: {total['number']} times" in out
    step = found["predicted"]["step"]
    assert f"step {short_time(step)}, " in out
    assert "0.00 " not in out.partition("predicted")[0], "every figure has a unit of its size"


def test_a_plan_has_the_kernels_of_xlas_gpu_compiler(tmp_path, capsys, monkeypatch):
    """As if jax's CUDA plugin were installed."""
    launches = {"reduction": 1200, "__cudnn$fmhaSoftmax": 2}
    kernels = Kernels(launches, {"__cudnn$fmhaSoftmax": 2}, {"f32[2,512]": 7, "f32[]": 1}, False)

    def by_gpu_compiler(plan, config, devices):
        assert devices == ["a described GPU"]
        memory = plan.memory._replace(activations=3 * 2**30)
        program = GPUProgram("NVIDIA H100 80GB HBM3", 61.0, kernels)
        return dataclasses.replace(plan, memory=memory, gpu_program=program)

    monkeypatch.setattr(gpu_compiler, "described_devices", lambda gpu, n: ["a described GPU"])
    monkeypatch.setattr(gpu_compiler, "by_gpu_compiler", by_gpu_compiler)
    file = tmp_path / "plan.json"
    main([*GPT, "--gpu", "H100", "--json", str(file)])
    out = capsys.readouterr().out
    assert "by XLA's GPU compiler for NVIDIA H100 80GB HBM3, in 61.00 s\n" in out
    assert "\n1,202 kernels and library calls" in out
    assert "\n       2  __cudnn$fmhaSoftmax\n" in out
    assert "    4.00 KiB  f32[2,512], written 7 times\n" in out
    found = json.loads(file.read_text())
    program, memory = found["gpu_program"], found["memory"]
    assert program["launches"] == 1202
    assert program["launches_by_kind"] == launches
    assert program["temporaries"] == memory["gradients"] + 3 * 2**30
    assert program["arguments"] + program["temporaries"] + memory["results"] == memory["total"]
    main([*GPT, "--gpu", "H100", "--compiler", "cpu"])
    assert "kernels" not in capsys.readouterr().out


def test_without_the_plugin_the_plan_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(gpu_compiler, "described_devices", lambda gpu, number: None)
    main([*GPT, "--gpu", "H100"])
    line = f"by XLA's CPU compiler; its GPU compiler, which needs no GPU: {gpu_compiler.INSTALL}\n"
    assert line in capsys.readouterr().out
    assert gpu_compiler.INSTALL in refusal(capsys, *GPT[1:], "--compiler", "gpu")
    assert "T4" in refusal(capsys, *GPT[1:], "--compiler", "gpu", "--gpu", "T4")


def test_devices_on_several_machines_are_noted_and_may_have_a_link(tmp_path, capsys, monkeypatch):
    note = "the 2 devices are taken to be linked as the 1 of a machine are"
    words = [*GPT, "--devices", "2", "--gpu", "A100-40GB", "--json", str(tmp_path / "plan.json")]

    def planned(*more: str) -> tuple[float, str]:
        main([*words, *more])
        found = json.loads((tmp_path / "plan.json").read_text())
        return found["predicted"]["collectives"], capsys.readouterr().out

    assert note not in planned()[1]
    monkeypatch.setattr(jaxformer.cli.plan, "A_MACHINE", 1)
    by_the_table, out = planned()
    assert note in out
    given, out = planned("--link", "25")
    assert note not in out
    assert given == pytest.approx(by_the_table * 300 / 25)


def test_a_vocabulary_that_the_mesh_does_not_divide_is_noted(capsys):
    main([*GPT, "--model.vocab-size", "15", "--mesh.fsdp", "2", "--devices", "2"])
    assert "as 2 does not divide 15: --model.vocab-size 16\n" in capsys.readouterr().out
    main([*GPT, "--model.vocab-size", "16", "--mesh.fsdp", "2", "--devices", "2"])
    assert "does not divide" not in capsys.readouterr().out


def test_a_plan_that_does_not_fit_suggests_flags_that_do(tmp_path, capsys, monkeypatch):
    small = {**GPUS, "H100": jaxformer.cli.plan.dataclasses.replace(GPUS["H100"], memory=2e5)}
    monkeypatch.setattr(jaxformer.cli.plan, "GPUS", small)
    file = tmp_path / "plan.json"
    main([*GPT, "--gpu", "H100", "--reserve", "0", "--json", str(file)])
    found = json.loads(file.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert found["fits"] is False
    assert any(line.startswith("does not fit: ") for line in lines)
    assert found["suggestions"][0]["flags"] == "--model.remat full"
    for one in found["suggestions"]:
        (shown,) = [line for line in lines if line.startswith(f"  {one['flags']}: ")]
        fits = one["memory"]["total"] <= 2e5
        assert one["fits"] == fits
        assert shown.endswith(": fits" if fits else ": does not fit")
    assert found["suggestions"][-1]["fits"]


def test_the_check_prints_predicted_beside_measured(tmp_path, capsys):
    file = tmp_path / "plan.json"
    main([*GPT, "--devices", "8", "--check", "--json", str(file)])
    found = json.loads(file.read_text())
    memory, used = found["memory"], found["used"]
    assert used["state"] == memory["parameters"] + memory["optimizer"]
    share = memory["total"] / used["program"]
    assert 0.7 < share < 1.4
    assert used["peak"] is None
    *_, state, program, peak = capsys.readouterr().out.splitlines()
    assert state.endswith(" 1.00 times")
    assert program.endswith(f" {share:.2f} times")
    assert peak.endswith(" not counted")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_planned_by_name(recipe):
    config, options = read([recipe, "--devices", "3", "--steps", "7", "--mesh.fsdp", "3"])
    assert (config.steps, config.mesh.fsdp, options.devices) == (7, 3, 3)


def test_a_preset_gives_the_defaults():
    assert read(["gpt_char", "--preset", "gpu"])[0].model.width == 384
    assert read(["transformer_base", "--preset=big", "--model.width", "32"])[0].model.width == 32


def test_a_file_gives_values_to_a_plan_too(tmp_path, capsys):
    (tmp_path / "part.json").write_text('{"steps": 41, "mesh": {"fsdp": 2}}')
    words = ["gpt_char", "--config", str(tmp_path / "part.json"), "--devices", "2"]
    config, options = read(words)
    assert (config.steps, config.mesh.fsdp, options.devices) == (41, 2, 2)
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words, "--print-config"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["mesh"] == {"data": -1, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--devices", "2"], r"recipe\b.*gpt_char, gpt_stdlib\b"),
        (["gpt_chart"], r"recipe gpt_chart .*gpt_char, gpt_stdlib\b"),
        (["../train"], r"recipe \.\./train "),
        (["gpt_char", "--preset", "tpu"], r"--preset tpu .*cpu, gpu\b"),
        (["gpt_char", "--gpu", "H1000"], r"gpu H1000 .*V100, "),
        (["gpt_char", "--devices", "0"], r"devices 0 "),
        (["gpt_char", "--reserve", "1"], r"reserve 1\.0 "),
        (["gpt_char", "--link", "0"], r"link 0\b"),
        (["gpt_char", "--run-dir", "x"], r"--run-dir\b"),
        (["gpt_char", "--config", "no.json"], r"--config no\.json is missing"),
        (["gpt_char", "--json", "no/where.json"], r"\bno is not a directory"),
        (["gpt_char", "--devices", "8"], r"'characters'.*--model\.vocab-size\b"),
        ([*GPT[1:], "--devices", "8", "--mesh.data", "3"], r"--mesh\.data 3 --mesh\.fsdp 1\b"),
        ([*GPT[1:], "--devices", "3"], r"batch-size 16 .*\b3 devices"),
        ([*GPT[1:], "--devices", "4", "--mesh.tensor", "4"], r"mesh\.tensor 4 "),
        ([*GPT[1:], "--model.dtype", "float64"], r"model\.dtype float64 "),
        (["gpt_char", "--devices", "900"], r"\b8 simulated devices, not 900\b"),
        (["gpt_char", "--devices", "9000"], r"devices 9000 "),
        (["gpt_char", "--json", "/dev/null"], r"/dev/null "),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(capsys, words, line):
    assert re.search(line, refusal(capsys, *words))


def test_a_check_needs_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [object()])
    with pytest.raises(UserError, match=r"--check .*\b2 devices.*\b1\b"):
        jaxformer.cli.plan.real_devices(2)


def test_the_number_of_simulated_devices_is_set_and_other_flags_stay():
    count = "--xla_force_host_platform_device_count"
    given = {"XLA_FLAGS": f"--xla_a=1 {count}=2", "JAX_PLATFORMS": "cuda"}
    found = settings(given, 5, real=False)
    assert found["XLA_FLAGS"].split() == ["--xla_a=1", f"{count}=5"]
    assert found["JAX_PLATFORMS"] == "cpu"
    # A check needs the accelerators, and its plan needs CPUs.
    assert settings(given, 5, real=True)["JAX_PLATFORMS"] == "cuda,cpu"
    assert settings({"JAX_PLATFORMS": "cpu"}, 5, real=True)["JAX_PLATFORMS"] == "cpu"
    assert settings({}, 5, real=True) == {"XLA_FLAGS": f"{count}=5", "JAX_PLATFORMS": ""}


def test_a_fresh_process_plans_without_data_or_devices(tmp_path):
    words = ["transformer_text", "--devices", "3", *TINY, "--data.vocab-size", "300"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-m", "jaxformer", "plan", *words, "--batch-tokens", "256"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.getcwd(), "JAXFORMER_CACHE": str(tmp_path)},
        cwd=tmp_path,
        timeout=600,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "3 simulated devices" in ran.stdout
    assert list(tmp_path.iterdir()) == []
