"""A run directory: refused if it holds a run, opened again only by the run that made it."""

import contextlib
import fcntl
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Array, PyTree

from jaxformer.checkpoint import PARAMS, Checkpoint, CheckpointWriter, check_path
from jaxformer.config import RunConfig, RunOptions
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from jaxformer.errors import UserError
from jaxformer.tasks.config_io import (
    config_from_json,
    config_to_json,
    differences,
    load_config,
    save_config,
)
from jaxformer.tasks.remarks import flags_of_files
from jaxformer.terminal import say

APPEARS = 60.0
"""Seconds within which other hosts see a file: as long as NFS keeps an answer by default."""
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
CURVES = "curves.png"
PROFILE = "profile"
LOCK = ".lock"
OF_VERSIONS = (
    "the standard library depends on Python's version, generated numbers on those of num2words and "
    "babel"
)
"""Why the same configuration may have other data."""
NAMES = (CONFIG, TOKENIZER, METRICS, CHECKPOINTS, CURVES)


def check_data(config: RunConfig, directory: Path) -> None:
    """Refuse a run whose own files would lie among its texts."""
    path = getattr(config.data, "path", None)
    if path is not None and path.resolve() == directory.resolve():
        raise UserError(
            f"run-dir {directory} is the directory of data.path {path} too, and what the run "
            "writes would become its text: choose another --run-dir"
        )


def check_run_dir(options: RunOptions) -> None:
    """Refuse, before any work is done, a directory that this run must not use.

    Raises:
        UserError: a new run would overwrite an old one, `--resume` finds none, or checkpoints
            cannot be written to such a path.
    """
    directory = options.run_dir
    check_path(directory / CHECKPOINTS)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another --run-dir")
    if not options.resume:
        found = [name for name in NAMES if (directory / name).exists()]
        if found:
            raise UserError(
                f"{directory} already holds a run ({', '.join(found)}): continue it with --resume "
                "or choose another --run-dir"
            )
    elif not (directory / CONFIG).is_file():
        raise UserError(f"{directory} holds no run to resume: leave out --resume to start one")


def check_config(config: RunConfig, made_with: RunConfig, directory: Path, advice: str) -> None:
    """Refuse another configuration than the run was made with, naming each flag that differs."""
    different = differences(config, made_with)
    if different:
        raise UserError(
            f"{directory} was made with another configuration: {'; '.join(different)}; {advice}"
        )


def saved_config(found: Checkpoint) -> RunConfig:
    """The configuration that a checkpoint was made with."""
    return config_from_json(found.metadata["config"], f"checkpoint {found.step}")


def fill_run_dir(config: RunConfig, directory: Path, tokenizer: Tokenizer) -> bool:
    """Create the directory and its missing files; config.json follows what a resume changes.

    That is the place of the data, more steps, the mesh, how attention is computed, the times of
    checkpoints and validations.

    config.json comes first: killed at any moment, there is either no run yet or one to resume.

    Returns:
        whether the run is a new one.

    Raises:
        UserError: tokenizer.json is there and is that of another run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    is_new = not (directory / CONFIG).exists()
    if is_new:
        save_config(config, directory / CONFIG)
    made_with = load_config(directory / CONFIG)
    if config != made_with:  # in what may change when a run is resumed
        save_config(config, directory / CONFIG)
    if not (directory / TOKENIZER).exists():
        save_tokenizer(tokenizer, directory / TOKENIZER)
    check_tokenizer(directory, load_tokenizer(directory / TOKENIZER), tokenizer.fingerprint)
    return is_new


def check_tokenizer(directory: Path, tokenizer: Tokenizer, made_with: str | None) -> None:
    """Refuse a tokenizer.json that is not the one the parameters were learned with.

    Another version of the `tokenizers` library may describe a file by other words, so the file's
    own hash counts as well. Of a checkpoint of an earlier version the hash is unknown.
    """
    path = directory / TOKENIZER
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    if made_with not in (None, tokenizer.fingerprint, own):
        raise UserError(
            f"{path} is not the tokenizer that the run was trained with: restore the run's own "
            "file, or delete it and --resume the run"
        )


def changed_data(data: Any, learned_from: str | None, here: str) -> str:
    """How data differ from those that a run learned from, and what to do.

    Args:
        data: the settings of the data.
        learned_from: description of the run's data, if it is known.
        here: description of the data that are here.
    """
    differ = learned_from not in (None, here)
    known = f": the run has {learned_from}, here is {here}" if differ else ""
    flags = flags_of_files(data)
    moved = f", or name where it is now by {flags}" if flags else ""
    return f"has changed{known} ({OF_VERSIONS}): restore it{moved}"


def save_params(
    directory: Path,
    config: RunConfig,
    tokenizer: Tokenizer,
    params: PyTree[Array],
    *,
    step: int = 0,
    data: str | None = None,
    lean: bool = False,
) -> None:
    """Write a run that holds parameters and no optimizer state, such as an imported model's.

    It is sampled, translated and evaluated like any run, and cannot be resumed.

    Args:
        directory: of the run; it must not hold one.
        config: with the vocabulary's size.
        tokenizer: of the model.
        params: of the model.
        step: optimizer steps that made them.
        data: the fingerprint of the data that they were learned from, if it is known.
        lean: write in little memory beside the parameters, each array to files of its own.

    Raises:
        UserError: the directory holds a run, or cannot be written.
    """
    check_run_dir(RunOptions(run_dir=directory))
    is_new = fill_run_dir(config, directory, tokenizer)
    with checkpoint_writer(directory, config, is_new) as writer:
        metadata = {
            "config": config_to_json(config),
            "data": data,
            "tokenizer": tokenizer.fingerprint,
        }
        writer.save(step, {PARAMS: params}, metadata, lean=lean)


def wait_until_visible(directory: Path) -> bool:
    """Whether the run that the first process has made or found is visible to this one, too."""
    deadline = time.monotonic() + APPEARS
    while not (seen := (directory / CONFIG).is_file()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def checkpoint_writer(directory: Path, config: RunConfig, is_new: bool = False) -> CheckpointWriter:
    """The writer of the run's checkpoints, with its config's retention.

    If the directory cannot hold checkpoints, nothing stays there of a run that is new.
    """
    settings, checkpoints = config.checkpoint, directory / CHECKPOINTS
    try:
        return CheckpointWriter(checkpoints, keep=settings.keep, every=settings.every)
    except UserError:
        if is_new:
            for name in (CONFIG, TOKENIZER, LOCK):
                (directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                checkpoints.rmdir()
                directory.rmdir()
        raise


def checkpoints_to_average(steps: Sequence[int], config: RunConfig) -> list[int]:
    """The newest step and the scheduled ones before it, newest first, as many as the run keeps.

    The older best one, which is far from them, and one saved by a stop between two are left out.
    """
    *older, newest = steps
    scheduled = [step for step in older if step % config.checkpoint.every == 0]
    return [newest, *reversed(scheduled)][: config.checkpoint.keep]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to the run during the block.

    Files that a killed process had begun to write are removed.
    """
    with open(directory / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is being trained by another process: wait for its end or choose "
                "another --run-dir"
            ) from None
        except OSError as error:  # some file systems have none, as Lustre mounted without them
            say(
                f"{directory / LOCK} cannot be locked ({error.strerror}): let no other process "
                "train in this directory",
                sys.stderr,
            )
        for name in NAMES:
            for begun in directory.glob(f".{name}.*"):
                begun.unlink()
        yield
