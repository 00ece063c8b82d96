"""metrics.jsonl, what a run has measured: one JSON object per line, written as it is measured.

Every line has `step` (optimizer steps done, from 1), `split` ("train" or "val") and `loss` (nats
per token), then whatever else the loop measures. Numbers are printed with all their digits,
so that two runs can be compared bit for bit. JSON knows no infinities: a value that is not finite
is written as one of the strings "nan", "inf" and "-inf", which Python's `float` reads back.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError

Split = Literal["train", "val"]


class MetricsWriter:
    """Appends lines to a run's metrics, each complete in the file before the next step begins."""

    def __init__(self, path: Path | None, resume_step: int | None = None):
        """Open the file: a new one, or on resume the one of the run that continues.

        Without a path nothing is written: of several processes only the first writes.

        A run may be killed at any moment, and continues from its newest checkpoint, which is older.
        Lines of steps after `resume_step` are dropped, since those steps are repeated, and so is a
        last line that was cut off. The loop writes the lines of a step before it saves that step;
        then the file of a resumed run equals that of an uninterrupted one, but for times.

        Raises:
            UserError: when a new run would write over metrics, or the old ones are damaged.
            OSError: naming the file, when it cannot be written.
        """
        self.path = path = path or Path(os.devnull)
        if path.is_char_device():
            pass
        elif resume_step is None:
            if path.exists():
                raise UserError(
                    f"{path} holds the metrics of a run: use --resume or another --run-dir"
                )
        elif path.exists():
            kept = [line for line, row in _rows(path) if row["step"] <= resume_step]
            with atomic_write(path) as file:
                file.writelines(line + b"\n" for line in kept)
        self._file = path.open("ab", buffering=0)  # nothing is left behind in a killed process

    def write(self, step: int, split: Split, *, loss: float, **values: float) -> None:
        """Append one line and hand it to the operating system.

        Raises:
            OSError: naming the file, when the disk is full.
        """
        numbers = {name: _number(value) for name, value in {"loss": loss, **values}.items()}
        row = {"step": int(step), "split": split, **numbers}
        line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        try:
            while line:  # a disk that fills up takes a part of the line first
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Return when the lines are on disk, where a loss of power does not reach them."""
        if not self.path.is_char_device():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file as a dictionary, non-finite numbers as floats.

    A last line without its line end is one that is being written, and is left out if it is not
    complete.

    Raises:
        UserError: when there is no such file, or a line is not one of metrics; names the line.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: name the --run-dir of a training run")
    return [row for _, row in _rows(path)]


def _rows(path: Path) -> Iterable[tuple[bytes, dict[str, Any]]]:
    """Each line without its end, as it stands and as it reads."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            yield line, row
        elif number < len(lines):  # what follows the last line end is empty, or cut off
            raise UserError(
                f"{path} line {number} is damaged, not an object with step, split and loss: "
                "restore the file or delete the line"
            )


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        split = row["split"]
        numbers = {name: float(value) for name, value in row.items() if name != "split"}
        step = int(numbers.pop("step"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if split not in ("train", "val") or step != row["step"] or "loss" not in numbers:
        return None
    return {"step": step, "split": split, **numbers}


def _number(value: float) -> float | str:
    """The number as JSON can hold it; device scalars and NumPy's become Python's."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)
