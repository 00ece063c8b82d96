"""Named tensors in a file of the safetensors format, which PyTorch's and Hugging Face's tools read.

Nothing is unpickled: the format is a JSON header of names, types, shapes, offsets, and the bytes. A
header that does not fit the file is refused; damage to the bytes themselves is not detected, as
the format has no checksum. Source: https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (bfloat16 for numpy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with atomic_write(Path(path)) as file:
        file.write(save(contiguous))


def load_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """Every tensor of the file by its name, bfloat16 included.

    Of a model in several files name the index, `model.safetensors.index.json`.

    Raises:
        UserError: naming the file, when it or a part is missing or not in the safetensors format.
    """
    path = Path(path)
    return _load_parts(path) if path.suffix == ".json" else _load_file(path)


def _load_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: name a safetensors file, or the index of several")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError) as error:  # numpy has no attribute float8...
        raise UserError(
            f"{path} holds no tensors in the safetensors format, or is damaged ({error}): "
            "restore it, or write it again with types that numpy has"
        ) from error


def _load_parts(index: Path) -> dict[str, np.ndarray]:
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
    tensors: dict[str, np.ndarray] = {}
    for part in sorted(set(weight_map.values())):
        there = _load_file(part)
        wanted = [name for name in weight_map if weight_map[name] == part]
        if lacking := [name for name in wanted if name not in there]:
            raise UserError(f"{part} lacks {lacking[0]}, which {index} has in it: restore the file")
        tensors |= {name: there[name] for name in wanted}
    return tensors
