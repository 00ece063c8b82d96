"""`jaxformer plan`: a recipe is planned from its name, without its data."""

import json
import os
import subprocess
import sys

import jax
import pytest

import jaxformer.cli.plan
from jaxformer.cli.main import main
from jaxformer.cli.plan import RECIPES, read, settings
from jaxformer.errors import UserError
from jaxformer.planning.hardware import GPUS

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
    assert f"step {jaxformer.cli.plan.time(step)}, " in out
    assert "0.00 " not in out.partition("predicted")[0], "every figure has a unit of its size"


def test_devices_of_several_machines_are_told_of_and_may_have_a_link(tmp_path, capsys, monkeypatch):
    told = "the 2 devices are taken to be linked as the 1 of a machine are"
    words = [*GPT, "--devices", "2", "--gpu", "A100-40GB", "--json", str(tmp_path / "plan.json")]

    def planned(*more: str) -> tuple[float, str]:
        main([*words, *more])
        found = json.loads((tmp_path / "plan.json").read_text())
        return found["predicted"]["collectives"], capsys.readouterr().out

    assert told not in planned()[1]
    monkeypatch.setattr(jaxformer.cli.plan, "A_MACHINE", 1)
    by_the_table, out = planned()
    assert told in out
    given, out = planned("--link", "25")
    assert told not in out
    assert given == pytest.approx(by_the_table * 300 / 25)


def test_a_vocabulary_that_the_mesh_does_not_divide_is_told(capsys):
    main([*GPT, "--model.vocab-size", "15", "--mesh.fsdp", "2", "--devices", "2"])
    assert "as 2 does not divide 15: --model.vocab-size 16\n" in capsys.readouterr().out
    main([*GPT, "--model.vocab-size", "16", "--mesh.fsdp", "2", "--devices", "2"])
    assert "does not divide" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "said"),
    [(512, "0.50 KiB"), (3 << 20, "3.00 MiB"), (5 << 30, "5.00 GiB"), (0, "0.00 KiB")],
)
def test_bytes_have_a_unit_of_their_size(number, said):
    assert jaxformer.cli.plan.size(number) == said


@pytest.mark.parametrize(
    ("number", "said"), [(1e6, "1.000 M"), (2e9, "2.000 G"), (3e13, "30.000 T")]
)
def test_flops_have_a_prefix_of_their_size(number, said):
    assert jaxformer.cli.plan.count(number) == said


def test_what_does_not_fit_is_told_with_what_would(tmp_path, capsys, monkeypatch):
    small = {**GPUS, "H100": jaxformer.cli.plan.dataclasses.replace(GPUS["H100"], memory=2e5)}
    monkeypatch.setattr(jaxformer.cli.plan, "GPUS", small)
    file = tmp_path / "plan.json"
    main([*GPT, "--gpu", "H100", "--reserve", "0", "--json", str(file)])
    found = json.loads(file.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert found["fits"] is False
    assert any(line.startswith("does not fit: ") for line in lines)
    assert found["suggestions"][0]["flags"] == "--model.remat"
    for one in found["suggestions"]:
        (told,) = [line for line in lines if line.startswith(f"  {one['flags']}: ")]
        fits = one["memory"]["total"] <= 2e5
        assert one["fits"] == fits
        assert told.endswith(": fits" if fits else ": does not fit")
    assert found["suggestions"][-1]["fits"]


def test_the_check_prints_predicted_beside_used(tmp_path, capsys):
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
def test_every_recipe_can_be_planned_by_its_name(recipe):
    config, options = read(
        [f"train.{recipe}", "--devices", "3", "--steps", "7", "--mesh.fsdp", "3"]
    )
    assert (config.steps, config.mesh.fsdp, options.devices) == (7, 3, 3)


def test_a_preset_gives_the_defaults():
    assert read(["gpt_char", "--preset", "gpu"])[0].model.width == 384
    assert read(["transformer_base", "--preset=big", "--model.width", "32"])[0].model.width == 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no recipe named first: choose one of gpt_char, "),
        (["--devices", "2"], "no recipe named first"),
        (["gpt_chart"], "recipe gpt_chart is unknown: choose one of gpt_char, gpt_stdlib"),
        (["../train"], "recipe ../train is unknown"),
        (["gpt_char", "--preset", "tpu"], "--preset tpu is unknown; choose one of cpu, gpu"),
        (["gpt_char", "--gpu", "H1000"], "gpu H1000 is unknown: choose one of V100, "),
        (["gpt_char", "--devices", "0"], "devices 0 "),
        (["gpt_char", "--reserve", "1"], "reserve 1.0 is no share"),
        (["gpt_char", "--link", "0"], "link 0"),
        (["gpt_char", "--run-dir", "x"], "unknown argument --run-dir"),
        (["gpt_char", "--json", "no/where.json"], "no is not a directory"),
        (["gpt_char", "--devices", "8"], "a tokenizer of 'characters' has as many tokens as"),
        ([*GPT[1:], "--devices", "8", "--mesh.data", "3"], "--mesh.data 3 --mesh.fsdp 1"),
        ([*GPT[1:], "--devices", "3"], "batch-size 16 does not split over 3"),
        ([*GPT[1:], "--devices", "4", "--mesh.tensor", "4"], "mesh.tensor 4 does not divide"),
        ([*GPT[1:], "--model.dtype", "float64"], "model.dtype float64 needs jax's wide mode"),
        (["gpt_char", "--devices", "900"], "jax was started with 8 simulated devices, not 900"),
        (["gpt_char", "--devices", "9000"], "devices 9000 is more than can be simulated"),
        (["gpt_char", "--json", "/dev/null"], "/dev/null is no file"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(capsys, words, said):
    assert refusal(capsys, *words).startswith(said)


def test_a_check_needs_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [object()])
    with pytest.raises(UserError, match="--check needs 2 devices, and 1 are here"):
        jaxformer.cli.plan.real_devices(2)


def test_jax_is_told_how_many_devices_to_simulate_and_loses_no_other_flag():
    count = "--xla_force_host_platform_device_count"
    given = {"XLA_FLAGS": f"--xla_a=1 {count}=2", "JAX_PLATFORMS": "cuda"}
    told = settings(given, 5, real=False)
    assert told["XLA_FLAGS"].split() == ["--xla_a=1", f"{count}=5"]
    assert told["JAX_PLATFORMS"] == "cpu"
    # A check needs the accelerators, and the plan beside it needs CPUs.
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


def test_a_file_of_the_users_by_the_name_of_the_recipes_is_not_run(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('I am no recipe')")
    ran = subprocess.run(
        [sys.executable, "-m", "jaxformer", "plan", "gpt_char"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        timeout=600,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert f"Python finds {tmp_path / 'train.py'} in their place" in ran.stderr
