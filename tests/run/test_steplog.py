"""The step log: each step once and in order, and the count of what a step computes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPT_PRESETS, LanguageConfig, MeshConfig
from jaxformer.run.metrics import MetricsWriter, read_metrics
from jaxformer.run.progress import Progress
from jaxformer.run.steplog import StepLog, flops_per_token
from jaxformer.sharding.mesh import make_mesh
from jaxformer.training.step import Metrics


def test_steps_are_written_in_order_when_the_next_has_begun(tmp_path):
    path = tmp_path / "metrics.jsonl"
    config = LanguageConfig(model=GPT_PRESETS["toy"], steps=3)
    with MetricsWriter(path) as writer, Progress(3) as progress:
        log = StepLog(config, make_mesh(MeshConfig()), lambda step: 0.1 * step, writer, progress)
        for step in (1, 2, 3):
            log.add(step, Metrics(jnp.float32(step / 3), jnp.float32(1)))
            assert [row["step"] for row in read_metrics(path)] == list(range(1, step))
        log.flush()
        log.flush()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] == float(np.float32(1 / 3)), "all digits"
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 0.1, 0.2])
    assert "step_seconds" not in rows[0], "the first step compiles"
    tokens = config.batch_size * config.model.context_length
    assert rows[1]["tokens_per_second"] * rows[1]["step_seconds"] == pytest.approx(tokens)
    assert all(row["memory_bytes"] > 0 for row in rows)
    assert "mfu" not in rows[1], "no peak is known of a CPU"


def test_flops_are_six_a_multiplied_weight_and_twelve_ntd_of_attention():
    config = GPT_PRESETS["gpt2"]
    weights = 12 * 12 * 768**2 + 50_257 * 768  # matrices of 12 blocks, and the logits
    expected = 6 * weights + 12 * 12 * 768 * 1024
    assert flops_per_token(config) == pytest.approx(expected, rel=2e-3)  # biases and norms
