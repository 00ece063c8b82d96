"""Checkpoints: save, verify, restore, retain. The only door to Orbax (its v1 interface).

A checkpoint is a directory named after its step. It is built under another name and renamed once,
when Orbax has committed the arrays and a manifest with every file's SHA-256 lies beside them:

    checkpoints/100/                   a complete checkpoint; nothing half-written has such a name
      params/                          the model's parameters
      optimizer/                       the rest of the train state; absent from an imported model
      manifest.jsonl                   step, metadata, leaves of each item, hash of each file
    checkpoints/.saving-120            a save in progress, or killed
    checkpoints/.trash-80              a deletion in progress, or killed
    checkpoints/.damaged-100-<time>    did not verify, in the way of a new step 100; never deleted

An item is read without the bytes of the others: parameters take about a third of an AdamW state.

Orbax loads flipped bits and casts dtypes silently, so an item is loaded only after its files were
hashed again and its leaves compared with those expected. Reading is functions that change nothing
on disk; writing is `CheckpointWriter`, which blocks the training loop only while arrays are copied
to the host. With several processes all call `save` and `restore`, on one shared file system; the
first alone writes manifests and deletes.
Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/v1/checkpointing_pytrees.html
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxformer import manifest
from jaxformer.config import require_positive
from jaxformer.errors import UserError
from jaxformer.manifest import CorruptionError

PARAMS, OPTIMIZER = "params", "optimizer"
"""The items of a train state's checkpoint."""
_SAVING, _TRASH, _DAMAGED = ".saving-", ".trash-", ".damaged-"
_SHOWN_MISMATCHES = 8
_SHOWN_CHARACTERS = 400

# Orbax logs an error with its traceback and raises it as well: the exception is enough.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint that verifies holds beside its arrays."""

    step: int
    """Optimizer steps done when it was saved."""
    metadata: Mapping[str, Any]
    """The JSON object given to `save`."""
    val_loss: float | None
    """Validation loss; None if there was none or it was not finite."""
    items: Mapping[str, Mapping[str, str]]
    """Item -> path of each of its leaves -> dtype and shape, such as `int8[2, 3]`."""
    skipped: tuple[str, ...]
    """One line for each newer checkpoint that does not verify, naming step, file and fault."""


def split(state: Any) -> dict[str, PyTree]:
    """The items of a train state: `params`, and as `optimizer` the state with None in its place."""
    return {PARAMS: state.params, OPTIMIZER: state._replace(params=None)}


def join(items: Mapping[str, PyTree]) -> Any:
    """The train state whose items these are: the inverse of `split`."""
    return items[OPTIMIZER]._replace(params=items[PARAMS])


def steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first; their files are not read."""
    numbers = all_steps(directory)
    return [step for step in numbers if (directory / str(step) / manifest.FILE).is_file()]


def all_steps(directory: Path) -> list[int]:
    """Everything named like a step, complete or damaged, in order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror}: name another one") from error
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def read_metadata(
    directory: Path, step: int | None = None, items: Collection[str] | None = None
) -> Checkpoint:
    """What the given step, or else the newest that verifies, holds beside its arrays.

    No array is loaded. The manifest, the files of `items` and those that belong to no item are read
    and hashed; files of other items are not opened, and may be damaged or missing. By default all
    are read.

    Raises:
        UserError: there is no such checkpoint, none verifies (each is named with the faulty file),
            one of `items` is not in it, or an earlier version of this library wrote it.
    """
    skipped: list[str] = []
    for candidate in reversed(all_steps(directory)) if step is None else [step]:
        try:
            content = _verify(directory, candidate, items)
        except CorruptionError as fault:
            skipped.append(str(fault))
        else:
            _require_items(candidate, content["items"], items or ())
            known = {key: content[key] for key in ("step", "metadata", "val_loss", "items")}
            skipped = [f"{fault}; step {candidate} is used instead" for fault in skipped]
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
            first local device.

    Raises:
        UserError: it holds other leaves, shapes or dtypes, or cannot be read.
    """
    expected = _leaves(abstract_items)
    _require_equal_leaves(found, expected)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device),
        dict(abstract_items),
    )
    try:
        with _context_of_readers(target):
            items = ocp.load_checkpointables(directory.absolute() / str(found.step), target)
    except Exception as error:
        raise UserError(
            f"checkpoint {found.step} is intact but cannot be loaded: {_brief(error)}"
        ) from error
    if _leaves(items) != expected:  # Orbax's threads do not see `with jax.enable_x64(True)`
        raise UserError(
            f"checkpoint {found.step} holds 64-bit numbers: set JAX_ENABLE_X64=1 and start again"
        )
    return items


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


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time in the background, and deletes old ones.

    It keeps the newest `keep` of the steps that `every` divides, the newest of all, and the one
    with the lowest finite validation loss: a run that was stopped between two of them and resumed
    ends with the same checkpoints as one that was not. Opening creates the directory and removes
    what a killed run left half-saved or half-deleted. Use it in a `with` statement or close it:
    `check`, `save`, `wait` and `close` raise a background failure.

    Raises:
        UserError: the directory cannot be created or has vanished, a step exists already, or a
            write failed.
    """

    def __init__(self, directory: Path, *, keep: int, every: int = 1):
        require_positive("checkpoint.keep", keep)
        require_positive("checkpoint.every", every)
        self._directory = directory.absolute()
        self._keep = keep
        self._every = every
        self._is_first_process = jax.process_index() == 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._verified: dict[int, bool] = {}
        if self._is_first_process:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot create {directory}: {error.strerror}: choose another directory"
                ) from error
            self._sweep()
            self._identity = os.stat(self._directory)

    def save(
        self,
        step: int,
        items: Mapping[str, PyTree[jax.Array]],
        metadata: Mapping[str, Any],
        val_loss: float | None = None,
    ) -> None:
        """Copy the items to the host, then write them in the background.

        Once this returns, their buffers may be donated. A checkpoint of the same step is an
        error if it verifies; if not, it is set aside under another name.

        Args:
            step: optimizer steps done.
            items: trees that can be read one without the other, such as those of `split`; their
                leaves are non-empty arrays of any dtype and sharding, random keys as raw key data.
            metadata: what JSON can hold.
            val_loss: the lowest marks the best checkpoint; None, NaN and infinity never do.
        """
        self.wait()
        finite = val_loss is not None and math.isfinite(val_loss)
        content = {
            "step": step,
            "val_loss": val_loss if finite else None,
            "metadata": json.loads(json.dumps(metadata)),  # a copy, for the caller may change it
            "items": _leaves(items),
        }
        if self._is_first_process:
            self._require_directory()
            self._make_way(step)
        options = ocp.Context()
        # Else a failing mkdir leaves Orbax's threads waiting for the directory, for 20 minutes.
        options.async_options.create_directories_asynchronously = False
        with self._explained(step), options:
            response = ocp.save_checkpointables_async(
                self._directory / f"{_SAVING}{step}", dict(items)
            )
        self._pending = self._thread.submit(self._finish, step, response, content)

    def check(self) -> None:
        """Raise the error of the save in progress, if it failed; to be called once per step."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Block until the last save is complete and old checkpoints are deleted."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # The error that ends the block is the one to report.
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def _require_directory(self) -> None:
        """Refuse a directory that Orbax created again: the earlier steps are not in it."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._identity, os.stat(self._directory)):
                return
        raise UserError(f"{self._directory} has vanished: put it back and resume")

    def _make_way(self, step: int) -> None:
        path = self._directory / str(step)
        if not path.exists():
            return
        try:
            _verify(self._directory, step)
        except CorruptionError:
            os.rename(path, self._directory / f"{_DAMAGED}{step}-{time.time_ns()}")
            return
        raise UserError(
            f"checkpoint {step} exists already in {self._directory} and is not overwritten: "
            "resume from it or choose another directory"
        )

    def _finish(
        self, step: int, response: ocp.AsyncResponse[None], content: dict[str, Any]
    ) -> None:
        """The background part of `save`: commit, manifest, rename, retention."""
        saving = self._directory / f"{_SAVING}{step}"
        with self._explained(step):
            response.result()
            if self._is_first_process:
                manifest.write(saving, content)
                os.rename(saving, self._directory / str(step))  # from here on it exists
                manifest.sync(self._directory)
                self._verified[step] = True
                self._retain(step)

    def _retain(self, newest: int) -> None:
        """Delete the steps that are not kept, of those up to the one just saved.

        Later steps, which the resume skipped, stay until the run reaches them; those that do not
        verify stay always.
        """
        losses: dict[int, float | None] = {}
        for step in all_steps(self._directory):
            if step <= newest and self._is_verified(step):
                losses[step] = _read(self._directory, step)["val_loss"]
        best = sorted((loss, step) for step, loss in losses.items() if loss is not None)[:1]
        scheduled = [step for step in sorted(losses) if step % self._every == 0]
        kept = {newest, *scheduled[-self._keep :], *(step for _, step in best)}
        for step in losses.keys() - kept:
            # Renamed first: a deletion that is cut short must not leave half a step.
            os.rename(self._directory / str(step), self._directory / f"{_TRASH}{step}")
        self._sweep()

    def _is_verified(self, step: int) -> bool:
        """Whether a step is what was written; hashed once, and not at all if written here."""
        if step not in self._verified:
            try:
                _verify(self._directory, step)
            except UserError:
                self._verified[step] = False
            else:
                self._verified[step] = True
        return self._verified[step]

    def _sweep(self) -> None:
        for prefix in (_SAVING, _TRASH):
            for path in self._directory.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turn any failed write into one line, and free the disk space it took."""
        try:
            yield
        except Exception as error:
            if self._is_first_process:
                self._sweep()
            raise UserError(
                f"saving checkpoint {step} in {self._directory} failed: {_brief(error)}; earlier "
                f"checkpoints are intact (steps {steps(self._directory)}): make room and resume"
            ) from error


def _context_of_readers(target: PyTree) -> ocp.Context:
    """Orbax's options for a load by all processes, or by this one alone onto devices of its own."""
    if all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(target)):
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        return ocp.Context(multiprocessing_options=alone)
    return ocp.Context()


def _verify(directory: Path, step: int, items: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest of a step whose items, by default all, are what was written."""
    content = _read(directory, step)
    with _naming(step):
        manifest.verify(directory / str(step), items)
    return content


def _read(directory: Path, step: int) -> dict[str, Any]:
    """The manifest of a step; no other file is read."""
    with _naming(step):
        content = manifest.read(directory / str(step))
        if content["step"] != step:
            raise CorruptionError(f"{manifest.FILE} is that of step {content['step']}")
    if "items" not in content:
        raise UserError(
            f"checkpoint {step} in {directory} was written by an earlier jaxformer, parameters and "
            "optimizer in one: use that version to read it, or train again in another --run-dir"
        )
    return content


@contextlib.contextmanager
def _naming(step: int) -> Iterator[None]:
    """Put the step into what a manifest reports."""
    try:
        yield
    except CorruptionError as fault:
        raise CorruptionError(f"checkpoint {step} cannot be used: {fault}") from None


def _leaves(items: Mapping[str, PyTree]) -> dict[str, dict[str, str]]:
    return {
        item: {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for item, tree in items.items()
    }


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


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:_SHOWN_CHARACTERS] or type(error).__name__
