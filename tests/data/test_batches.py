"""A batch is a pure function of its step; epochs and evaluations cover the whole text."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.batches import TrainingBatches, evaluation_batches, training_iterator
from jaxformer.errors import UserError

few = settings(deadline=None, max_examples=60)
sizes = {
    "num_tokens": st.integers(2, 90),
    "batch_size": st.integers(1, 7),
    "context_length": st.integers(1, 12),
}


def counted(num_tokens):
    """Tokens whose ids are their positions."""
    return np.arange(num_tokens, dtype="<u2")


def assert_equal(batch, other):
    for array, expected in zip(batch, other, strict=True):
        np.testing.assert_array_equal(array, expected, strict=True)


@given(**sizes, seed=st.integers(0, 2**32 - 1), step=st.integers(0, 10**9))
@few
def test_targets_follow_inputs(num_tokens, batch_size, context_length, seed, step):
    tokens = counted(max(num_tokens, context_length + 1))
    inputs, targets, mask = TrainingBatches(tokens, batch_size, context_length, seed)[step]
    assert inputs.shape == targets.shape == mask.shape == (batch_size, context_length)
    assert inputs.dtype == targets.dtype == np.int32
    assert mask.dtype == bool
    assert mask.all()
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(context_length))
    assert 0 <= inputs.min() <= targets.max() < len(tokens)


@given(**sizes, seed=st.integers(0, 99), step=st.integers(0, 50))
@few
def test_a_batch_depends_only_on_seed_and_step(num_tokens, batch_size, context_length, seed, step):
    tokens = counted(max(num_tokens, context_length + 1))
    walked = TrainingBatches(tokens, batch_size, context_length, seed)
    for earlier in range(step):
        walked[earlier]
    assert_equal(walked[step], TrainingBatches(tokens, batch_size, context_length, seed)[step])


@given(**sizes, seed=st.integers(0, 99))
@few
def test_an_epoch_takes_every_window_once(num_tokens, batch_size, context_length, seed):
    tokens = counted(max(num_tokens, context_length + 1))
    source = TrainingBatches(tokens, batch_size, context_length, seed)
    W = source.windows_per_epoch
    rows = np.concatenate([source[step].inputs[:, 0] for step in range(-(-3 * W // batch_size))])
    for epoch in range(3):
        starts = np.sort(rows[epoch * W : (epoch + 1) * W])
        offset = starts[0]
        assert 0 <= offset <= len(tokens) - 1 - W * context_length
        np.testing.assert_array_equal(starts, offset + context_length * np.arange(W))
        # Fewer than two windows are left out, so that W is the same at every offset.
        assert len(tokens) - 1 - W * context_length < 2 * context_length


def test_orders_and_offsets_differ_between_epochs_and_seeds():
    source = TrainingBatches(counted(1000), 4, 8, seed=0)
    epochs = [source.epoch_starts(epoch) for epoch in range(40)]
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 40
    assert {int(starts.min()) for starts in epochs} == set(range(8))  # 8 + 1000 mod 8
    assert not np.array_equal(TrainingBatches(counted(1000), 4, 8, 1).epoch_starts(0), epochs[0])
    firsts = [starts[0] // 8 for starts in epochs]
    assert len(set(firsts)) > 20


def test_the_order_never_changes():
    """A different order would break the resumption of every run, whatever the version of numpy."""
    source = TrainingBatches(counted(60), 3, 8, seed=7)
    assert source.epoch_starts(0).tolist() == [26, 18, 42, 10, 2, 34]
    assert source.epoch_starts(1).tolist() == [42, 2, 26, 18, 10, 34]


def test_every_token_but_the_first_becomes_a_target():
    source = TrainingBatches(counted(50), 4, 8, seed=0)
    targets = np.concatenate([source[step].targets.ravel() for step in range(100)])
    assert set(targets.tolist()) == set(range(1, 50))


def test_ids_above_16_bits_are_kept():
    tokens = np.array([0, 70_000, 65_535], dtype="<u4")
    assert TrainingBatches(tokens, 1, 2, 0)[0].targets.tolist() == [[70_000, 65_535]]
    assert next(evaluation_batches(tokens, 1, 2)).targets.tolist() == [[70_000, 65_535]]


@given(**sizes, start=st.integers(0, 30))
@few
def test_a_resumed_iterator_equals_a_whole_one(num_tokens, batch_size, context_length, start):
    tokens = counted(max(num_tokens, context_length + 1))
    source = TrainingBatches(tokens, batch_size, context_length, seed=1)
    fresh = TrainingBatches(tokens, batch_size, context_length, seed=1)
    with (
        contextlib.closing(training_iterator(source)) as whole,
        contextlib.closing(training_iterator(fresh, start)) as resumed,
    ):
        for step, batch in enumerate(itertools.islice(whole, start, start + 20), start):
            assert_equal(batch, next(resumed))
            assert_equal(batch, source[step])


def test_a_closed_iterator_leaves_no_thread():
    before = set(threading.enumerate())
    with contextlib.closing(training_iterator(TrainingBatches(counted(99), 2, 4, 0))) as batches:
        next(batches)
    deadline = time.monotonic() + 600
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("ending", ["batches.close()", "pass"])
def test_a_program_exits_silently_with_or_without_close(ending):
    source = (
        "import numpy as np\n"
        "from jaxformer.data.batches import TrainingBatches, training_iterator\n"
        "batches = training_iterator(TrainingBatches(np.arange(999), 2, 4, 0), 5)\n"
        f"next(batches)\n{ending}\n"
    )
    command = [sys.executable, "-W", "error", "-c", source]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@given(**sizes)
@few
def test_an_evaluation_takes_every_target_once_in_order(num_tokens, batch_size, context_length):
    tokens = counted(num_tokens)
    batches = list(evaluation_batches(tokens, batch_size, context_length))
    for inputs, targets, mask in batches:
        assert inputs.shape == targets.shape == mask.shape == (batch_size, context_length)
        assert inputs.dtype == targets.dtype == np.int32
        assert mask.dtype == bool
        assert not inputs[~mask].any()
        assert not targets[~mask].any()
    inputs, targets, mask = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    np.testing.assert_array_equal(inputs[mask], tokens[:-1])
    np.testing.assert_array_equal(targets[mask], tokens[1:])
    assert mask[0, 0]
    assert len(batches) == -(-(num_tokens - 1) // (batch_size * context_length))


def test_text_shorter_than_a_window_is_refused():
    assert TrainingBatches(counted(9), 2, 8, 0)[3].inputs.tolist() == [list(range(8))] * 2
    with pytest.raises(UserError, match=r"8 tokens.*model\.context-length 8"):
        TrainingBatches(counted(8), 2, 8, 0)


def test_text_without_a_target_is_refused():
    with pytest.raises(UserError, match="1 tokens"):
        evaluation_batches(counted(1), 2, 8)
