"""Writing checkpoints: one at a time in the background, and which of them are kept."""

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxformer import manifest
from jaxformer.checkpoint.layout import (
    DAMAGED,
    SAVING,
    TRASH,
    TRIAL,
    all_steps,
    brief,
    check_path,
    leaves_of,
    read_manifest,
    steps,
    verify,
)
from jaxformer.config import require_positive
from jaxformer.errors import UserError
from jaxformer.manifest import CorruptionError

LEAN_CHUNK = 2**23
"""Bytes of an array that a lean save writes at once, and holds a second time."""


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time in the background, and deletes old ones.

    It keeps the newest `keep` of the steps that `every` divides, the newest of all, and the one
    with the lowest finite validation loss: a run that was stopped between two of them and resumed
    ends with the same checkpoints as one that was not. Opening creates the directory and removes
    what a killed run left half-saved or half-deleted. Use it in a `with` statement or close it:
    `check`, `save`, `wait` and `close` raise a background failure.

    Raises:
        UserError: the directory cannot be used, cannot be created or has vanished, a step exists
            already, or a write failed.
    """

    def __init__(self, directory: Path, *, keep: int, every: int = 1):
        require_positive("checkpoint.keep", keep)
        require_positive("checkpoint.every", every)
        check_path(directory)
        self._directory = directory.absolute()
        self._keep = keep
        self._every = every
        self._is_first_process = jax.process_index() == 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
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
            if jax.process_count() == 1:  # several would have to save together
                self._try_out()

    def save(
        self,
        step: int,
        items: Mapping[str, PyTree[jax.Array]],
        metadata: Mapping[str, Any],
        *,
        lean: bool = False,
    ) -> None:
        """Copy the items to the host, then write them in the background.

        Once this returns, their buffers may be donated. A checkpoint of the same step is an
        error if it verifies; if not, it is set aside under another name.

        Args:
            step: optimizer steps done.
            items: trees that can be read one without the other, such as those of `split`; their
                leaves are non-empty arrays of any dtype and sharding, random keys as raw key data.
            metadata: what JSON can hold.
            lean: write each array to files of its own, chunk by chunk, which needs little memory
                beside the items; all arrays in common files, the default, need as much again.
        """
        self.wait()
        content = {
            "step": step,
            "val_loss": None,
            "metadata": json.loads(json.dumps(metadata)),  # a copy, for the caller may change it
            "items": leaves_of(items),
        }
        if self._is_first_process:
            self._require_directory()
            self._make_way(step)
        with self._explained(step), _context(lean):
            response = ocp.save_checkpointables_async(
                self._directory / f"{SAVING}{step}", dict(items)
            )
        self._pending = self._executor.submit(self._finish, step, response, content)

    def add_val_loss(self, step: int, val_loss: float) -> None:
        """Add the validation loss to a checkpoint, if there is one of this step that verifies.

        A step is saved before it is evaluated, so that an evaluation that fails loses nothing. The
        lowest loss marks the best checkpoint; NaN and infinity never do.
        """
        self.wait()
        if self._is_first_process and math.isfinite(val_loss) and self._is_verified(step):
            with self._explained(step):
                content = read_manifest(self._directory, step)
                manifest.rewrite(self._directory / str(step), {**content, "val_loss": val_loss})
                self._retain(step)

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
            self._executor.shutdown()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # The error that ends the block is the one to report.
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def _try_out(self) -> None:
        """Save a number: a directory that cannot hold checkpoints is refused before the work.

        TensorStore locks the files that it writes, for one, which not every file system can.
        """
        try:
            with _context():
                ocp.save_checkpointables(self._directory / TRIAL, {"trial": {"x": np.zeros(1)}})
        except Exception as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory}: {brief(error)}; earlier "
                f"checkpoints are intact (steps {steps(self._directory)}): mend what is missing or "
                "choose another --run-dir"
            ) from error
        finally:
            self._sweep()

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
            verify(self._directory, step)
        except CorruptionError:
            os.rename(path, self._directory / f"{DAMAGED}{step}-{time.time_ns()}")
            return
        raise UserError(
            f"checkpoint {step} exists already in {self._directory} and is not overwritten: "
            "resume from it or choose another directory"
        )

    def _finish(
        self, step: int, response: ocp.AsyncResponse[None], content: dict[str, Any]
    ) -> None:
        """The background part of `save`: commit, manifest, rename, retention."""
        saving = self._directory / f"{SAVING}{step}"
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
                losses[step] = read_manifest(self._directory, step)["val_loss"]
        best = sorted((loss, step) for step, loss in losses.items() if loss is not None)[:1]
        scheduled = [step for step in sorted(losses) if step % self._every == 0]
        kept = {newest, *scheduled[-self._keep :], *(step for _, step in best)}
        for step in losses.keys() - kept:
            # Renamed first: a deletion that is cut short must not leave half a step.
            os.rename(self._directory / str(step), self._directory / f"{TRASH}{step}")
        self._sweep()

    def _is_verified(self, step: int) -> bool:
        """Whether a step is what was written; hashed once, and not at all if written here."""
        if step not in self._verified:
            try:
                verify(self._directory, step)
            except UserError:
                self._verified[step] = False
            else:
                self._verified[step] = True
        return self._verified[step]

    def _sweep(self) -> None:
        for prefix in (SAVING, TRASH):
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
                f"saving checkpoint {step} in {self._directory} failed: {brief(error)}; earlier "
                f"checkpoints are intact (steps {steps(self._directory)}): {_advice(error)} and "
                "resume"
            ) from error


def _context(lean: bool = False) -> ocp.Context:
    """Orbax's options for a save."""
    context = ocp.Context()
    context.array.saving.use_ocdbt = not lean
    if lean:
        context.array.saving.storage_options.chunk_byte_size = LEAN_CHUNK
    # Otherwise a failing mkdir leaves Orbax's threads waiting for the directory for 20 minutes.
    context.async_options.create_directories_asynchronously = False
    return context


def _advice(error: BaseException) -> str:
    """What to do about a failed write; Orbax and TensorStore give the system's words for it."""
    no_room = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return "make room" if any(words in str(error) for words in no_room) else "mend that"
