"""A language run's batches, as its configuration says."""

import jax
import numpy as np

from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_task
from tests.run.tiny import tiny_config


def test_batches_have_the_length_of_the_context_and_targets_follow_inputs(tmp_path):
    config = tiny_config(tmp_path)
    task = language_task(config, make_mesh(config.mesh, jax.devices()[:1]))
    shape = config.batch_size, config.model.context_length
    validation = list(task.validation())
    for batch in (task.batches[0], task.batches[3], *validation):
        assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == shape
        np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    first = np.concatenate([batch.inputs.ravel() for batch in validation])
    np.testing.assert_array_equal(first, task.data.val[: first.size])
    assert len(validation) == -(-config.eval_tokens // np.prod(shape))
