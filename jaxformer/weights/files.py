"""Named tensors in a file, in the safetensors format that PyTorch's and Hugging Face's tools share.

Nothing is unpickled: the format is a JSON header of names, types, shapes and places, and the bytes.
A header that does not fit the file is refused; damage to the bytes themselves goes unnoticed, since
the format has no checksum. Source: https://huggingface.co/docs/safetensors
"""

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
    """Every tensor of the file by its name, bfloat16 among them.

    Raises:
        UserError: when there is no such file, or it is none of safetensors; names it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is no file: name one of safetensors")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError) as error:  # numpy has no attribute float8...
        raise UserError(
            f"{path} holds no tensors in the safetensors format, or is damaged ({error}): "
            "restore it, or write it anew with other types"
        ) from error
