"""`--profile FIRST:LAST`: the trace of these steps, and the operations that took longest in it."""

import gzip
import json
import math

import pytest

from jaxformer.config import RunOptions
from jaxformer.errors import UserError
from jaxformer.monitor.profile import Operation, require_profiled, top_operations
from jaxformer.run.loop import train
from tests.run.tiny import tiny_config


def operation(name, ts, dur, tid=1, pid=1):
    place = {"pid": pid, "tid": tid, "ts": ts, "dur": dur}
    return {"ph": "X", "name": name, "args": {"hlo_op": name}, **place}


def write(file, events):
    with gzip.open(file, "wt") as target:
        json.dump({"traceEvents": events}, target)
    return file


def test_an_operations_time_is_without_those_inside_it(tmp_path):
    events = [
        operation("dot.1", 2, 3),
        operation("while.1", 0, 10),
        operation("add.1", 6, 4),  # ends with the loop
        operation("dot.1", 10, 5),
        operation("dot.1", 3, 6, tid=2),  # another thread
        {**operation("end: dot.1", 4, 1, tid=2), "args": {}},
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/host:CPU"}},
        {"ph": "i", "name": "an instant", "pid": 1, "tid": 1, "ts": 3},
        {"ph": "X", "name": "Python", "pid": 1, "tid": 3, "ts": 0, "dur": 100},
    ]
    found = top_operations(write(tmp_path / "trace.json.gz", events))
    names, seconds, shares = zip(*found, strict=True)
    assert names == ("dot.1", "add.1", "while.1")
    assert seconds == pytest.approx([13e-6, 4e-6, 3e-6])
    assert shares == pytest.approx([13 / 20, 4 / 20, 3 / 20])


def test_kernels_of_a_gpu_count_whether_xla_named_them_or_not(tmp_path):
    gpu = {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/device:GPU:0"}}
    unnamed = {"ph": "X", "name": "gemm", "pid": 2, "tid": 7, "ts": 9, "dur": 3, "args": {}}
    named = {**operation("fusion.3", 1, 1, pid=2), "name": "loop_fusion"}
    found = top_operations(write(tmp_path / "trace.json.gz", [gpu, unnamed, named]))
    assert found == [
        Operation("gemm", pytest.approx(3e-6), 0.75),
        Operation("fusion.3", pytest.approx(1e-6), 0.25),
    ]


def test_a_trace_without_operations_has_none(tmp_path):
    assert top_operations(write(tmp_path / "trace.json.gz", [])) == []


@pytest.mark.parametrize("words", ["", "3", "3:", ":3", "5:4", "0:4", "-1:4", "a:b", "1:2:3"])
def test_what_is_no_range_of_steps_is_refused(tmp_path, words):
    with pytest.raises(UserError, match=f"profile '{words}' .*FIRST:LAST"):
        RunOptions(run_dir=tmp_path, profile=words)


@pytest.mark.parametrize(
    ("steps", "start", "last", "choice"),
    [("3:9", 0, 8, "1:8"), ("3:4", 3, 8, "4:8"), ("9:9", 0, 8, "1:8"), ("3:4", 8, 8, "no step")],
)
def test_steps_that_the_run_does_not_take_are_refused(tmp_path, steps, start, last, choice):
    profiled = RunOptions(run_dir=tmp_path, profile=steps).profiled_steps
    with pytest.raises(UserError, match=f"profile {steps} .*{choice}"):
        require_profiled(profiled, start, last)
    require_profiled(range(start + 1, last + 1), start, last)
    require_profiled(range(0), start, last)


def test_a_run_writes_the_trace_of_the_steps_and_says_what_took_longest(tmp_path, capsys):
    config, run_dir = tiny_config(tmp_path), tmp_path / "run"
    with pytest.raises(UserError, match="profile 3:13"):
        train(config, RunOptions(run_dir=run_dir, profile="3:13"))
    assert not run_dir.exists()
    train(config, RunOptions(run_dir=run_dir, profile="3:4", stop_after=5))
    file = run_dir / "profile" / "steps-3-4.json.gz"
    trace = json.loads(gzip.decompress(file.read_bytes()))
    assert "metadata" not in trace
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = [event["args"]["step_num"] for event in events if event["name"] == "step"]
    assert steps == ["3", "4"]
    modules = {event["args"].get("hlo_module") for event in events if "args" in event}
    assert "jit_train_step" in modules
    operations = top_operations(file)
    assert math.fsum(share for _, _, share in operations) == pytest.approx(1.0)
    lines = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if str(file) in line)
    assert "steps 3 to 4" in lines[place]
    for line, each in zip(lines[place + 2 : place + 5], operations, strict=False):
        assert line.endswith(each.name)
        assert f"{each.share:.1%}" in line


def test_a_trace_is_ended_with_a_run_that_ends_early(tmp_path, monkeypatch):
    """The next run of the process can have one: JAX takes one at a time."""
    from jaxformer.monitor import profile

    def fail(*_):
        raise UserError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(profile.Profiler, "after", fail)
        with pytest.raises(UserError, match="no room"):
            train(tiny_config(tmp_path), RunOptions(run_dir=tmp_path / "run", profile="1:2"))
    with profile.Profiler(range(1, 2), tmp_path, print) as profiler:
        profiler.before(1, [])
