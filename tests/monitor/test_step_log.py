"""The step log: each step once and in order, with its speed."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPT_PRESETS, LanguageConfig, MeshConfig
from jaxformer.evaluation.loss import Evaluation
from jaxformer.monitor.loss_monitor import LossMonitor
from jaxformer.monitor.metrics import MetricsWriter, read_metrics
from jaxformer.monitor.progress import Progress
from jaxformer.monitor.step_log import StepLog
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.task import StepCost
from jaxformer.training.spikes import LossStats
from jaxformer.training.step import Metrics


def test_every_few_steps_have_a_line_and_the_last_and_those_with_a_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.1239)
    config, path = LanguageConfig(model=GPT_PRESETS["toy"], steps=11), tmp_path / "metrics.jsonl"
    seen, monitor = [], LossMonitor(1)
    observe = monitor.observe
    monitor.observe = lambda step, metrics: seen.append(step) or observe(step, metrics)
    with MetricsWriter(path) as writer, Progress(11) as progress:
        log = StepLog(config, make_mesh(MeshConfig()), writer, progress, monitor, every=3)
        for step in range(1, 12):
            one, spike = jnp.float32(1), jnp.bool(step == 5)
            metrics = Metrics(one, one, one, LossStats(), spike=spike, skipped=jnp.bool(False))
            log.add(step, metrics, StepCost(100, 1e9))
        log.flush()
        log.evaluated(11, Evaluation(2.0, 7))
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [3, 5, 6, 9, 11, 11]
    assert seen == [*range(1, 12)]
    assert {row["time"] for row in rows} == {1_700_000_000.124}


def test_steps_are_written_in_order_when_the_next_has_begun(tmp_path):
    path = tmp_path / "metrics.jsonl"
    config = LanguageConfig(model=GPT_PRESETS["toy"], steps=3)
    with MetricsWriter(path) as writer, Progress(3) as progress:
        log = StepLog(config, make_mesh(MeshConfig()), writer, progress, LossMonitor(1))
        for step in (1, 2, 3):
            loss, rate = jnp.float32(step / 3), jnp.float32(0.1 * step)
            good = jnp.bool(False)
            metrics = Metrics(loss, jnp.float32(1), rate, LossStats(), spike=good, skipped=good)
            log.add(step, metrics, StepCost(100 * step, 1e9))
            assert [row["step"] for row in read_metrics(path)] == list(range(1, step))
        log.flush()
        log.flush()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] == float(np.float32(1 / 3)), "all digits"
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.2, 0.3])
    assert "step_seconds" not in rows[0], "the first step compiles"
    for row in rows[1:2]:  # the last step is not followed by another that would time it
        tokens = row["tokens_per_second"] * row["step_seconds"]
        assert tokens == pytest.approx(100 * row["step"])
    assert all(row["memory_bytes"] > 0 for row in rows)
    assert "mfu" not in rows[1], "no peak is known of a CPU"
