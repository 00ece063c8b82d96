"""Restored = saved, to the bit; what does not fit is refused; the newest and the best are kept."""

import collections
import contextlib
import itertools
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxformer import checkpoint, manifest
from jaxformer.checkpoint import CheckpointWriter, restore, state_hash, steps
from jaxformer.errors import UserError
from jaxformer.models.stacked import stack_layers
from jaxformer.training.spikes import LossStats
from jaxformer.training.step import TrainState
from tests.states import abstract, assert_same_bits, bits, save_all, small_state, snapshot

Moments = collections.namedtuple("Moments", "count mu nothing")
Empty = collections.namedtuple("Empty", "")
METADATA = {"config": {"width": 32, "data": None}, "position": 7, "versions": {"jax": "0.10"}}

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool", "int4")


def test_restored_equals_saved_to_the_bit_in_every_dtype_and_structure(tmp_path: Path) -> None:
    arrays = {
        f"{dtype} {shape}": bits(i, shape, dtype)
        for i, (dtype, shape) in enumerate(itertools.product(DTYPES, [(), (1,), (3, 5), (2, 1, 7)]))
    }
    layers = {i: {"kernel": bits(i, (2, 3), "float32")} for i in range(12)}  # 10 after 9, not 1
    moments = Moments(jnp.int32(3), {"a.b/c d['x']": bits(99, (4,), "float32")}, None)
    state = {"params": {"arrays": arrays, "layers": layers}, "optimizer": jnp.int32(5)}
    state["more"] = (moments, Empty(), [{}, jnp.ones(2)])
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(5, state, METADATA)
    restored, found = restore(tmp_path, abstract(state))
    assert_same_bits(restored, state)
    assert state_hash(restored) == state_hash(state)
    assert (found.step, found.metadata, found.skipped) == (5, METADATA, ())


def test_layers_are_restored_stacked_or_as_a_list_whichever_was_saved(tmp_path: Path) -> None:
    layers = {i: {"kernel": bits(i, (8, 3), "float32")} for i in range(11)}
    as_list = {"params": {"blocks": layers, "scale": bits(99, (3,), "float32")}}
    stacked = stack_layers(as_list)
    for name, saved, wanted in (("list", as_list, stacked), ("stack", stacked, as_list)):
        with CheckpointWriter(tmp_path / name, keep=1) as writer:
            writer.save(1, saved, {})
        restored, _ = restore(tmp_path / name, abstract(wanted))
        assert_same_bits(restored, wanted)
        same, _ = restore(tmp_path / name, abstract(saved))
        assert_same_bits(same, saved)

    fewer = {"params": {**as_list["params"], "blocks": {i: layers[i] for i in range(10)}}}
    with pytest.raises(UserError, match=r"blocks.*stacked"):
        restore(tmp_path / "stack", abstract(fewer))


def test_stacked_layers_are_restored_onto_a_mesh(tmp_path: Path) -> None:
    layers = {i: {"up": {"kernel": bits(i, (8, 4), "float32")}} for i in range(3)}
    as_list = {"params": {"blocks": layers}}
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, as_list, {})
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        stack_layers(as_list),
    )
    restored, _ = restore(tmp_path, wanted)
    (leaf,) = jax.tree.leaves(restored)
    assert leaf.sharding == sharding
    assert_same_bits(restored, stack_layers(as_list))


def test_float64_survives_and_is_never_narrowed(tmp_path: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        state = {"x": jnp.asarray([1 / 3, -0.0, math.nan], jnp.float64)}
        with CheckpointWriter(tmp_path, keep=1) as writer:
            writer.save(1, state, {})
        assert_same_bits(restore(tmp_path, abstract(state))[0], state)
    finally:
        jax.config.update("jax_enable_x64", False)
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64"):
        restore(tmp_path, abstract(state))
    with pytest.raises(UserError, match=r"saved float64\[3\], expected float32\[3\]"):
        restore(tmp_path, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_restores_to_the_bit_from_every_mesh_on_every_mesh(tmp_path: Path) -> None:
    def mesh(**axes: int) -> jax.sharding.Mesh:
        return jax.make_mesh(
            tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
        )

    shardings = [
        SingleDeviceSharding(jax.devices()[3]),
        NamedSharding(mesh(data=8), P()),
        NamedSharding(mesh(fsdp=8), P("fsdp")),
        NamedSharding(mesh(data=2, tensor=4), P(None, "tensor")),
        NamedSharding(mesh(data=2, fsdp=2, tensor=2), P(("data", "fsdp"), "tensor")),
    ]
    state = {"w": bits(0, (8, 16), "float32"), "m": bits(1, (8, 8), "bfloat16")}
    with CheckpointWriter(tmp_path, keep=9) as writer:
        for number, sharding in enumerate(shardings):
            writer.save(number, jax.device_put(state, sharding), {})
    for number, sharding in itertools.product(range(len(shardings)), shardings):
        restored, _ = restore(tmp_path, abstract(state, sharding), number)
        assert_same_bits(restored, state)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize("spec", [P(), P("data")])
def test_buffers_may_be_donated_as_soon_as_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: P
) -> None:
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), spec)
    overwrite = jax.jit(lambda x: x * -3 + 1, donate_argnums=0)
    x = overwrite(jax.device_put(jnp.arange(2.0**19).reshape(512, -1), sharding))
    before = np.array(x, copy=True)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, {"x": x}, {})
        for _ in range(5):
            x = overwrite(x)
        x.block_until_ready()
    restored, _ = restore(tmp_path, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    assert np.array_equal(restored["x"], before)
    assert not np.array_equal(x, before)


def test_a_stop_between_two_steps_of_the_schedule_changes_nothing_that_is_kept(
    tmp_path: Path,
) -> None:
    kept = []
    for name, saved in {"whole": (10, 20, 30, 40), "stopped": (10, 20, 25, 30, 37, 40)}.items():
        with CheckpointWriter(tmp_path / name, keep=2, every=10) as writer:
            for step in saved:
                writer.save(step, small_state(step), {})
        kept.append(steps(tmp_path / name))
    assert kept == [[30, 40], [30, 40]]


def test_the_newest_is_kept_though_it_is_not_of_the_schedule(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=1, every=10) as writer:
        for step in (10, 20, 25):
            writer.save(step, small_state(step), {})
    assert steps(tmp_path) == [20, 25]


def test_metadata_is_the_one_at_saving_and_needs_no_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata: dict[str, Any] = {"config": {"width": 3}, "list": [1, None, 0.1]}
    with CheckpointWriter(tmp_path, keep=3) as writer:
        writer.save(4, small_state(4), metadata)
        writer.add_val_loss(4, 0.1)
        metadata["config"]["width"] = 4
        writer.save(6, small_state(6), metadata)
        writer.add_val_loss(6, math.nan)
    monkeypatch.setattr(checkpoint.reader.ocp, "load_checkpointables", None)
    newest, older = checkpoint.read_metadata(tmp_path), checkpoint.read_metadata(tmp_path, 4)
    assert (newest.step, newest.metadata["config"], newest.val_loss) == (6, {"width": 4}, None)
    assert (older.step, older.metadata["config"], older.val_loss) == (4, {"width": 3}, 0.1)
    assert older.metadata["list"] == [1, None, 0.1]


def test_relative_directories_work_from_where_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointWriter(Path("run/checkpoints"), keep=1) as writer:
        os.chdir("/")
        writer.save(1, small_state(1), {})
    os.chdir(tmp_path)
    assert_same_bits(restore(Path("run/checkpoints"), abstract(small_state(1)))[0], small_state(1))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_state_hash_is_equal_exactly_for_equal_bits(data: st.DataObject) -> None:
    state = small_state(0)
    sharding = NamedSharding(jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,)), P())
    assert state_hash(jax.device_put(state, sharding)) == state_hash(state)
    flipped = np.array(state["params"]["w"])
    flat = flipped.view(np.uint8).reshape(-1)
    flat[data.draw(st.integers(0, flat.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    params = state["params"]
    others = [
        state | {"params": params | {"w": flipped}},
        state | {"params": params | {"w": params["w"].reshape(4, 8)}},
        state | {"optimizer": jax.tree.map(lambda x: x.view(jnp.uint32), state["optimizer"])},
        state | {"params": {"w": params["w"], "c": params["b"]}},
    ]
    assert len({state_hash(other) for other in [state, *others]}) == 5


# What does not fit is refused ---------------------------------------------------------------------


def test_every_mismatch_is_named_in_one_line(tmp_path: Path) -> None:
    save_all(tmp_path, [1])
    target = abstract(small_state(1))
    target["params"]["w"] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    target["optimizer"]["key"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    target["optimizer"]["extra"] = target["optimizer"].pop("step")
    with pytest.raises(UserError) as error:
        restore(tmp_path, target)
    line = str(error.value)
    assert "\n" not in line
    for part in (
        "params['w'] saved float32[8, 4], expected float32[8, 5]",
        "optimizer['key'] saved uint32[2], expected int32[2]",
        "optimizer['extra'] saved nothing, expected int32[]",
        "optimizer['step'] saved int32[], expected nothing",
    ):
        assert part in line
    assert "['b']" not in line


def test_the_line_of_mismatches_is_bounded(tmp_path: Path) -> None:
    save_all(tmp_path, [1])
    target = {f"leaf{i}": jax.ShapeDtypeStruct((1,), jnp.float32) for i in range(500)}
    with pytest.raises(UserError, match="494 more") as error:
        restore(tmp_path, {"params": target})
    assert len(str(error.value)) < 1000


# An item is read alone ----------------------------------------------------------------------------


def params_of(state: dict[str, Any]) -> dict[str, Any]:
    return {"params": state["params"]}


@contextlib.contextmanager
def opened_files() -> Iterator[set[str]]:
    """The names of the files that Python opens during the block."""
    opened: set[str] = set()
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            opened.add(os.fspath(arguments[0]))

    sys.addaudithook(watch)
    try:
        yield opened
    finally:
        watching = False  # a hook cannot be removed


def test_params_are_read_without_opening_a_file_of_the_optimizer(tmp_path: Path) -> None:
    save_all(tmp_path, [1])
    with opened_files() as opened:
        restore(tmp_path, params_of(abstract(small_state(1))))
    inside = {Path(name).relative_to(tmp_path) for name in opened if str(tmp_path) in name}
    assert any(path.parts[:2] == ("1", "params") for path in inside)
    assert not [path for path in inside if path.parts[1:2] == ("optimizer",)]


@pytest.mark.parametrize("damage", ["deleted", "flipped", "unreadable"])
def test_params_load_whatever_became_of_the_optimizer_and_a_resume_refuses(
    tmp_path: Path, damage: str
) -> None:
    save_all(tmp_path, [1])
    optimizer = tmp_path / "1" / "optimizer"
    victim = next(path for path in (optimizer / "d").iterdir() if path.is_file())
    if damage == "deleted":
        shutil.rmtree(optimizer)
    elif damage == "flipped":
        victim.write_bytes(bytes(byte ^ 1 for byte in victim.read_bytes()))
    else:
        victim.unlink()
        victim.mkdir()
    restored, found = restore(tmp_path, params_of(abstract(small_state(1))))
    assert_same_bits(restored, params_of(small_state(1)))
    assert found.skipped == ()
    with pytest.raises(UserError, match="checkpoint 1 cannot be used: optimizer/"):
        restore(tmp_path, abstract(small_state(1)))


def test_damaged_params_are_refused_though_the_optimizer_is_intact(tmp_path: Path) -> None:
    save_all(tmp_path, [1])
    for path in (tmp_path / "1" / "params").rglob("*"):
        if path.is_file() and path.stat().st_size:
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            with pytest.raises(UserError, match=f"cannot be used: params/.*{path.name}"):
                restore(tmp_path, params_of(abstract(small_state(1))))
            path.write_bytes(content)


def test_a_checkpoint_without_an_optimizer_is_valid_and_not_resumed(tmp_path: Path) -> None:
    params = params_of(small_state(3))
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(0, params, {})
    assert_same_bits(restore(tmp_path, abstract(params))[0], params)
    assert checkpoint.read_metadata(tmp_path).items.keys() == {"params"}
    with pytest.raises(UserError, match="checkpoint 0 holds params, no optimizer: ") as error:
        restore(tmp_path, abstract(small_state(3)))
    assert "\n" not in str(error.value)


def test_a_train_state_is_split_into_params_and_all_the_rest() -> None:
    stats = LossStats(*map(jnp.float32, (3, 2, 1)))
    moments = {"w": jnp.zeros(3)}, jnp.int32(1)
    state = TrainState(jnp.int32(2), {"w": jnp.ones(3)}, moments, stats)
    items = checkpoint.split(state)
    assert items.keys() == {"params", "optimizer"}
    assert len(jax.tree.leaves(items["optimizer"])) == 6
    assert_same_bits(checkpoint.join(items), state)


def test_a_checkpoint_of_before_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "7" / "state").mkdir(parents=True)
    (tmp_path / "7" / "state" / "array").touch()
    content = {"step": 7, "val_loss": None, "metadata": {}, "leaves": {"['w']": "float32[1]"}}
    manifest.write(tmp_path / "7", content)
    for read in (checkpoint.read_metadata, lambda path: restore(path, {"params": {}})):
        with pytest.raises(UserError, match=r"checkpoint 7 .* written by an earlier jaxformer"):
            read(tmp_path)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        with pytest.raises(UserError, match="written by an earlier jaxformer"):
            writer.save(7, small_state(7), {})
        writer.save(9, small_state(9), {})
    assert (tmp_path / "7" / "state" / "array").exists(), "it is not deleted"


# What is kept -------------------------------------------------------------------------------------


def test_an_existing_step_is_not_overwritten(tmp_path: Path) -> None:
    save_all(tmp_path, [1])
    before = snapshot(tmp_path / "1")
    with CheckpointWriter(tmp_path, keep=1) as writer:
        with pytest.raises(UserError, match="checkpoint 1 exists already"):
            writer.save(1, small_state(2), {})
    assert snapshot(tmp_path / "1") == before


LOSSES = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -math.inf, 0.5]), st.floats())


@settings(max_examples=12, deadline=None)
@given(losses=st.lists(LOSSES, min_size=1, max_size=6), keep=st.integers(1, 3))
def test_the_newest_and_the_best_are_kept(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float | None], keep: int
) -> None:
    directory = tmp_path_factory.mktemp("retention")
    with CheckpointWriter(directory, keep=keep) as writer:
        for step, loss in enumerate(losses):
            writer.save(step, {"x": jnp.int32(step)}, {})
            if loss is not None:
                writer.add_val_loss(step, loss)
            writer.wait()
            finite = {
                s: x for s, x in enumerate(losses[: step + 1]) if x is not None and math.isfinite(x)
            }
            newest = range(max(0, step + 1 - keep), step + 1)
            best = sorted(finite, key=lambda s: (finite[s], s))[:1]
            assert steps(directory) == sorted({*newest, *best})
            assert not list(directory.glob(".*"))


def test_reading_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    save_all(directory, [10, 20])
    for name in (".saving-30", ".saving-30.orbax-checkpoint-tmp", ".trash-5", "30"):
        (directory / name).mkdir()
    before = snapshot(tmp_path)
    steps(directory)
    checkpoint.read_metadata(directory)
    restore(directory, abstract(small_state(0)))
    assert steps(tmp_path / "missing") == []
    assert snapshot(tmp_path) == before


def test_opening_for_writing_clears_away_leftovers_only(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    save_all(directory, [10, 20])
    for name in (".saving-30", ".saving-30.orbax-checkpoint-tmp", ".trash-5", ".damaged-4-1", "x"):
        (directory / name).mkdir()
        (directory / name / "file").touch()
    CheckpointWriter(directory, keep=1).close()
    assert {path.name for path in directory.iterdir()} == {"10", "20", ".damaged-4-1", "x"}


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot create .*: choose another directory"):
        CheckpointWriter(tmp_path / "file" / "checkpoints", keep=1)


def test_save_returns_before_the_step_exists_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set(threading.enumerate())
    reached, release, write = threading.Event(), threading.Event(), manifest.write

    def held_back(*arguments: Any) -> None:
        reached.set()
        assert release.wait(600)
        write(*arguments)

    monkeypatch.setattr(manifest, "write", held_back)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, small_state(1), {})
        assert reached.wait(600)
        assert steps(tmp_path) == []
        assert not (tmp_path / "1").exists()
        release.set()
        writer.wait()
        assert steps(tmp_path) == [1]
    assert set(threading.enumerate()) == threads
