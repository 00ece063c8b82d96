"""Named tensors in a file of the safetensors format, which PyTorch's and Hugging Face's tools read.

Nothing is unpickled: the format is a JSON header of names, types, shapes, offsets, and the bytes. A
header that does not fit the file is refused; damage to the bytes themselves is not detected, as
the format has no checksum. Source: https://huggingface.co/docs/safetensors
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (bfloat16 for numpy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError

TYPES: Mapping[str, str] = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}
"""The format's types that numpy has, or has by ml_dtypes."""


Reader = Callable[[], np.ndarray]
"""Reads one tensor."""


class LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by their names, each read when it is asked for and kept by nobody.

    Bytes are read, not mapped: the pages of a mapped file count as memory of the process.
    """

    def __init__(self, readers: Mapping[str, Reader], types: Mapping[str, str]):
        """A reader and the name of the type of each tensor."""
        self._readers, self.types = readers, types

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclasses.dataclass(frozen=True)
class _Slice:
    """Where a tensor lies in its file."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        count = int(np.prod(self.shape, dtype=np.int64))
        with self.path.open("rb") as file:
            file.seek(self.offset)
            array = np.fromfile(file, np.dtype(self.dtype), count)
        if len(array) < count:
            raise UserError(f"{self.path} has become shorter while it was read: restore it")
        return array.reshape(self.shape)


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the file, whole or not at all.

    Args:
        tensors: by their names.
        path: of the file.
        metadata: texts for the header; transformers asks for {"format": "pt"}.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with atomic_write(Path(path)) as file:
        file.write(save(contiguous, None if metadata is None else dict(metadata)))


def load_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """Every tensor of the file by its name, bfloat16 included; see `open_tensors`."""
    return dict(open_tensors(path))


def open_tensors(path: Path | str) -> LazyTensors:
    """The tensors of a file, whose header alone is read so far.

    Of a model in several files name the index, `model.safetensors.index.json`.

    Raises:
        UserError: naming the file, when it or a part is missing, cut short, not in the safetensors
            format, or has types that numpy has not.
    """
    path = Path(path)
    found = _parts(path) if path.suffix == ".json" else _slices(path)
    return LazyTensors(
        dict[str, Reader](found), {name: tensor.dtype for name, tensor in found.items()}
    )


def _slices(path: Path) -> dict[str, _Slice]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: name a safetensors file, or the index of several")
    try:
        with safe_open(path, framework="np"):  # checks that the header fits the file
            pass
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in TYPES:
            shown = {"F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn"}
            dtype = shown.get(entry["dtype"], entry["dtype"])
            raise _unreadable(path, f"{name} is {dtype}")
    return {
        name: _Slice(
            path, 8 + length + entry["data_offsets"][0], TYPES[entry["dtype"]], (*entry["shape"],)
        )
        for name, entry in header.items()
    }


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} holds no tensors in the safetensors format, or is damaged ({why}): "
        "restore it, or write it again with types that numpy has"
    )


def _parts(index: Path) -> dict[str, _Slice]:
    """The tensors of the files beside an index, whose `weight_map` has the file of each tensor."""
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        weight_map = {str(name): index.parent / Path(part).name for name, part in found.items()}
    except OSError as error:
        raise UserError(f"{index} cannot be read ({error.strerror}): name another") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is not the index of a model in several files: name a safetensors file"
        ) from error
    tensors: dict[str, _Slice] = {}
    for part in sorted(set(weight_map.values())):
        there = _slices(part)
        wanted = [name for name in weight_map if weight_map[name] == part]
        if lacking := [name for name in wanted if name not in there]:
            raise UserError(f"{part} lacks {lacking[0]}, which {index} has in it: restore the file")
        tensors |= {name: there[name] for name in wanted}
    return tensors
