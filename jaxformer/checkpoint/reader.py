"""Reading checkpoints: metadata, verification, restored arrays; nothing on disk changes."""

import contextlib
import dataclasses
import gc
import hashlib
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxformer import manifest
from jaxformer.checkpoint.layout import (
    OPTIMIZER,
    PARAMS,
    all_steps,
    brief,
    check_path,
    leaves_of,
    read_manifest,
    verify,
)
from jaxformer.errors import UserError
from jaxformer.manifest import CorruptionError
from jaxformer.models.stacked import in_form_of, is_stacked, stack_layers, unstack_layers

_SHOWN_MISMATCHES = 8


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint that verifies holds beside its arrays."""

    step: int
    """Optimizer steps done when it was saved."""
    metadata: Mapping[str, Any]
    """The JSON object given to `save`."""
    val_loss: float | None
    """Validation loss; None if it was not measured or is not finite."""
    items: Mapping[str, Mapping[str, str]]
    """Item -> path of each of its leaves -> dtype and shape, such as `int8[2, 3]`."""
    skipped: tuple[str, ...]
    """One line for each checkpoint that was passed over since it does not verify, and why, and one
    for the files in this one that were not written by `save`, if there are any."""


def split(state: Any) -> dict[str, PyTree]:
    """The items of a train state: `params`, and as `optimizer` the state with None in its place."""
    return {PARAMS: state.params, OPTIMIZER: state._replace(params=None)}


def join(items: Mapping[str, PyTree]) -> Any:
    """The train state whose items these are: the inverse of `split`."""
    return items[OPTIMIZER]._replace(params=items[PARAMS])


def read_metadata(
    directory: Path, step: int | None = None, items: Collection[str] | None = None
) -> Checkpoint:
    """What the given step, or else the newest that verifies, holds beside its arrays.

    No array is loaded. The manifest, the files of `items` and those that belong to no item are read
    and hashed; files of other items are not opened, and may be damaged or missing. By default all
    are read.

    Raises:
        UserError: there is no such checkpoint (those that are there are named), none verifies (each
            is named with the faulty file), one of `items` is not in it, or an earlier version of
            this library wrote it.
    """
    there = all_steps(directory)
    if step is not None and there and step not in there:
        raise UserError(
            f"there is no checkpoint {step} in {directory}: choose one of the steps "
            f"{', '.join(map(str, there))}"
        )
    return _first_of(directory, reversed(there) if step is None else [step], items)


def read_best(directory: Path, items: Collection[str] | None = None) -> Checkpoint:
    """`read_metadata` of the checkpoint with the lowest validation loss of those that verify.

    One whose manifest is damaged, so that its loss is not known, is among the `skipped`.

    Raises:
        UserError: as `read_metadata` does, and if no checkpoint has a validation loss.
    """
    losses, unknown = [], []
    for step in all_steps(directory):
        try:
            losses.append((read_manifest(directory, step)["val_loss"], step))
        except CorruptionError:
            unknown.append(step)
    scored = sorted((loss, step) for loss, step in losses if loss is not None)
    if losses and not scored:
        raise UserError(
            f"no checkpoint in {directory} has a validation loss, so none is the best: name a step"
        )
    return _first_of(directory, [*unknown, *(step for _, step in scored)], items)


def _first_of(
    directory: Path, candidates: Iterable[int], items: Collection[str] | None
) -> Checkpoint:
    """What the first of these steps that verifies holds beside its arrays."""
    skipped: list[str] = []
    for candidate in candidates:
        try:
            content = verify(directory, candidate, items)
        except CorruptionError as fault:
            skipped.append(str(fault))
        else:
            _require_items(candidate, content["items"], items or ())
            known = {key: content[key] for key in ("step", "metadata", "val_loss", "items")}
            skipped = [f"{fault}; step {candidate} is used instead" for fault in skipped]
            if strangers := manifest.strangers(directory / str(candidate), items):
                names = ", ".join(strangers)
                skipped.append(f"checkpoint {candidate} is used without {names}: not part of it")
            return Checkpoint(**known, skipped=tuple(skipped))
    if not skipped:
        raise UserError(
            f"there is no checkpoint in {directory}: train first or name another directory"
        )
    raise UserError(
        f"no usable checkpoint in {directory}: {'; '.join(skipped)}: name another step or directory"
    )


def restore(
    directory: Path, abstract_items: Mapping[str, PyTree], step: int | None = None
) -> tuple[dict[str, PyTree[jax.Array]], Checkpoint]:
    """Load items of the given step, or else of the newest in which they verify.

    `read_metadata` of these items, then `load`.

    Raises:
        UserError: as these do.
    """
    found = read_metadata(directory, step, abstract_items.keys())
    return load(directory, found, abstract_items), found


def load(
    directory: Path, found: Checkpoint, abstract_items: Mapping[str, PyTree]
) -> dict[str, PyTree[jax.Array]]:
    """Load items that `read_metadata` verified; the other items of the checkpoint are not read.

    Restored = saved, to the bit, on whatever mesh.

    Args:
        directory: where it was found.
        found: what `read_metadata` gave.
        abstract_items: for each item to load a tree of `jax.ShapeDtypeStruct` with the structure,
            shapes and dtypes of the saved one. Shardings may differ; a leaf without one goes to the
            first local device. Layers may be stacked here and a list there, or the reverse.

    Raises:
        UserError: it holds other leaves, shapes or dtypes, or cannot be read, there or at all.
    """
    check_path(directory, to_read=True)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device),
        dict(abstract_items),
    )
    target = {item: _as_saved(tree, found.items[item]) for item, tree in wanted.items()}
    expected = leaves_of(target)
    _require_equal_leaves(found, expected)
    fault = ""
    items: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Orbax leaves reads that were not begun behind a failed one, which keeps them alive.
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
        try:
            with _late_reads_silenced(), _context_of_readers(target):
                path = directory.absolute() / str(found.step)
                for item, tree in target.items():
                    items |= ocp.load_checkpointables(path, {item: tree})
        except Exception as error:
            fault = brief(error)
        if fault:
            gc.collect()
    if fault:
        raise UserError(f"checkpoint {found.step} is intact but cannot be loaded: {fault}")
    if leaves_of(items) != expected:  # Orbax's threads do not see `with jax.enable_x64(True)`
        raise UserError(
            f"checkpoint {found.step} holds 64-bit numbers: set JAX_ENABLE_X64=1 and start again"
        )
    final = leaves_of(wanted)
    return {
        item: tree if final[item] == expected[item] else _as_wanted(tree, wanted[item])
        for item, tree in items.items()
    }


def _as_saved(wanted: PyTree, saved: Iterable[str]) -> PyTree:
    """The shapes with layers that are stacked if those of the saved leaves' paths are."""
    return (stack_layers if any(map(is_stacked, saved)) else unstack_layers)(wanted)


def _as_wanted(loaded: PyTree[jax.Array], wanted: PyTree) -> PyTree[jax.Array]:
    """The loaded arrays with layers of the other form; both forms are in memory for a moment."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return jax.jit(lambda tree: in_form_of(wanted, tree), out_shardings=shardings)(loaded)


def state_hash(state: PyTree[jax.Array]) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf, in the tree's order.

    Equal only for states that are equal to the bit; shardings do not count. Every leaf must be
    addressable by this process.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _late_reads_silenced() -> Iterator[None]:
    """If the block fails, drop what reads that end after it report: its own error says it all.

    They report to an event loop that is closed by then, from threads of TensorStore.
    """
    before = sys.unraisablehook

    def show(lost: "sys.UnraisableHookArgs") -> None:
        if str(lost.exc_value) != "Event loop is closed":
            before(lost)

    sys.unraisablehook = show
    yield
    sys.unraisablehook = before


def _context_of_readers(target: PyTree) -> ocp.Context:
    """Orbax's options for a load by all processes, or by this one alone onto devices of its own."""
    if all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(target)):
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        return ocp.Context(multiprocessing_options=alone)
    return ocp.Context()


def _require_items(step: int, held: Collection[str], wanted: Collection[str]) -> None:
    if missing := [item for item in wanted if item not in held]:
        raise UserError(
            f"checkpoint {step} holds {' and '.join(held)}, no {' and no '.join(missing)}: sample, "
            "translate or evaluate it; to train, start a new run in another --run-dir"
        )


def _require_equal_leaves(found: Checkpoint, wanted: Mapping[str, Mapping[str, str]]) -> None:
    mismatches = []
    for item, leaves in wanted.items():
        saved = found.items[item]
        mismatches += [
            f"{item}{path} saved {saved.get(path, 'nothing')}, "
            f"expected {leaves.get(path, 'nothing')}"
            for path in sorted(saved.keys() | leaves.keys())
            if saved.get(path) != leaves.get(path)
        ]
    if mismatches:
        more = len(mismatches) - _SHOWN_MISMATCHES
        shown = mismatches[:_SHOWN_MISMATCHES] + ([f"{more} more"] if more > 0 else [])
        raise UserError(
            f"checkpoint {found.step} holds another state: {'; '.join(shown)}: "
            "use the configuration it was saved with"
        )
