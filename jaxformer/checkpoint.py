"""Checkpoints: save, verify, restore, retain. The only door to Orbax (its v1 interface).

A checkpoint is a directory named after its step. It is built under another name and renamed once,
when Orbax has committed the arrays and a manifest with every file's SHA-256 lies beside them:

    checkpoints/100/                   a complete checkpoint; nothing half-written has such a name
    checkpoints/.saving-120            a save under way, or killed
    checkpoints/.trash-80              a deletion under way, or killed
    checkpoints/.damaged-100-<time>    did not verify, in the way of a new step 100; never deleted

Orbax loads flipped bits and casts dtypes without a word, so a checkpoint is loaded only after its
files were hashed again and its leaves compared with those expected. Reading is functions that
change nothing on disk; writing is `CheckpointWriter`, which holds up the training loop only while
arrays are copied to the host. With several processes all call `save` and `restore`, on one shared
file system; the first alone writes manifests and deletes.
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
from collections.abc import Callable, Iterator, Mapping
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

_SAVING, _TRASH, _DAMAGED = ".saving-", ".trash-", ".damaged-"
_SHOWN_MISMATCHES = 8
_SHOWN_CHARACTERS = 400

# What Orbax logs as an error, traceback and all, also reaches us as an exception: once is enough.
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
    leaves: Mapping[str, str]
    """Path of every leaf -> dtype and shape, such as `['params']['w']` -> `float32[2, 3]`."""
    skipped: tuple[str, ...]
    """One line for each newer checkpoint that does not verify, naming step, file and fault."""


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


def read_metadata(directory: Path, step: int | None = None) -> Checkpoint:
    """What the given step, or else the newest that verifies, holds beside its arrays.

    Every file is read and hashed, no array is loaded.

    Raises:
        UserError: there is no such checkpoint, or none verifies; names each with the file at fault.
    """
    skipped: list[str] = []
    for candidate in reversed(all_steps(directory)) if step is None else [step]:
        try:
            content = _content(directory, candidate, manifest.verify)
        except CorruptionError as fault:
            skipped.append(str(fault))
        else:
            known = {key: content[key] for key in ("step", "metadata", "val_loss", "leaves")}
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
    directory: Path, abstract_state: PyTree, step: int | None = None
) -> tuple[PyTree[jax.Array], Checkpoint]:
    """Load the state of the given step, or else of the newest that verifies: both of the below."""
    found = read_metadata(directory, step)
    return load(directory, found, abstract_state), found


def load(directory: Path, found: Checkpoint, abstract_state: PyTree) -> PyTree[jax.Array]:
    """Load the state of a checkpoint that was found to verify.

    Restored = saved, to the bit, on whatever mesh.

    Args:
        directory: where it was found.
        found: what `read_metadata` gave.
        abstract_state: a tree of `jax.ShapeDtypeStruct` with the structure, shapes and dtypes of
            the saved one. Shardings may differ; a leaf without one goes to the first local device.

    Raises:
        UserError: it holds other leaves, shapes or dtypes, or cannot be read.
    """
    _require_equal_leaves(found, _leaves(abstract_state))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device),
        abstract_state,
    )
    try:
        with _context_of_readers(target):
            state = ocp.load(directory.absolute() / str(found.step), target)
    except Exception as error:
        raise UserError(
            f"checkpoint {found.step} is intact but cannot be loaded: {_brief(error)}"
        ) from error
    if _leaves(state) != found.leaves:  # Orbax's threads do not see `with jax.enable_x64(True)`
        raise UserError(
            f"checkpoint {found.step} holds 64-bit numbers: set JAX_ENABLE_X64=1 and start again"
        )
    return state


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

    Kept are the newest `keep` of the steps that `every` divides, the newest of all, and the one
    with the lowest finite validation loss: a run that was stopped between two of them and resumed
    ends with the same checkpoints as one that was not. Opening creates the directory and clears
    away what a killed run left half-saved or half-deleted. Use it in a `with` statement or close
    it: `check`, `save`, `wait` and `close` raise a background failure.

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
        self._sound: dict[int, bool] = {}
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
        state: PyTree[jax.Array],
        metadata: Mapping[str, Any],
        val_loss: float | None = None,
    ) -> None:
        """Copy the state to the host, then write it in the background.

        Once this returns, the state's buffers may be donated. A checkpoint of the same step is an
        error if it verifies; if not, it is set aside under another name.

        Args:
            step: optimizer steps done.
            state: non-empty arrays of any dtype and sharding; random keys as raw key data.
            metadata: what JSON can hold.
            val_loss: the lowest marks the best checkpoint; None, NaN and infinity never do.
        """
        self.wait()
        finite = val_loss is not None and math.isfinite(val_loss)
        content = {
            "step": step,
            "val_loss": val_loss if finite else None,
            "metadata": json.loads(json.dumps(metadata)),  # a copy, for the caller may change it
            "leaves": _leaves(state),
        }
        if self._is_first_process:
            self._require_directory()
            self._make_way(step)
        options = ocp.Context()
        # Else a failing mkdir leaves Orbax's threads waiting for the directory, for 20 minutes.
        options.async_options.create_directories_asynchronously = False
        with self._explained(step), options:
            response = ocp.save_async(self._directory / f"{_SAVING}{step}", state)
        self._pending = self._thread.submit(self._finish, step, response, content)

    def check(self) -> None:
        """Raise what the save under way has met, if it failed; to be called once a step."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last save is complete and old checkpoints are deleted."""
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
        # An error that is already on its way is the one to report.
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def _require_directory(self) -> None:
        """Refuse to go on in a directory that Orbax made anew, for earlier steps are not in it."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._identity, os.stat(self._directory)):
                return
        raise UserError(f"{self._directory} has vanished: put it back and resume")

    def _make_way(self, step: int) -> None:
        path = self._directory / str(step)
        if not path.exists():
            return
        try:
            _content(self._directory, step, manifest.verify)
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
                self._sound[step] = True
                self._retain(step)

    def _retain(self, newest: int) -> None:
        """Delete what is not to be kept of the steps up to the one just saved.

        Later ones were passed over at resume; they are left alone until the run reaches them, and
        damaged ones always.
        """
        losses: dict[int, float | None] = {}
        for step in all_steps(self._directory):
            if step <= newest and self._is_sound(step):
                content = _content(self._directory, step, manifest.read)
                losses[step] = content["val_loss"]
        best = sorted((loss, step) for step, loss in losses.items() if loss is not None)[:1]
        scheduled = [step for step in sorted(losses) if step % self._every == 0]
        kept = {newest, *scheduled[-self._keep :], *(step for _, step in best)}
        for step in losses.keys() - kept:
            # Renamed first: a deletion that is cut short must not leave half a step.
            os.rename(self._directory / str(step), self._directory / f"{_TRASH}{step}")
        self._sweep()

    def _is_sound(self, step: int) -> bool:
        """Whether a step is what was written: looked at once, and not at all if written here."""
        if step not in self._sound:
            try:
                _content(self._directory, step, manifest.verify)
            except CorruptionError:
                self._sound[step] = False
            else:
                self._sound[step] = True
        return self._sound[step]

    def _sweep(self) -> None:
        for prefix in (_SAVING, _TRASH):
            for path in self._directory.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turn whatever fails while writing into one line, and give back the disk space it took."""
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


def _content(directory: Path, step: int, check: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The manifest of a step, after `check` (`manifest.read` or `manifest.verify`)."""
    try:
        content = check(directory / str(step))
        if content["step"] != step:
            raise CorruptionError(f"{manifest.FILE} is that of step {content['step']}")
    except CorruptionError as fault:
        raise CorruptionError(f"checkpoint {step} cannot be used: {fault}") from None
    return content


def _leaves(state: PyTree) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _require_equal_leaves(found: Checkpoint, wanted: Mapping[str, str]) -> None:
    mismatches = [
        f"{path} saved {found.leaves.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}"
        for path in sorted(found.leaves.keys() | wanted.keys())
        if found.leaves.get(path) != wanted.get(path)
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
