"""Named tensors in a file of the safetensors format, which PyTorch's and Hugging Face's tools read.

Nothing is unpickled: the format is a JSON header of names, types, shapes, offsets, and the bytes. A
header that does not fit the file is refused; damage to the bytes themselves is not detected, as
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
    """Every tensor of the file by its name, bfloat16 included.

    Raises:
        UserError: naming the file, when it is missing or not in the safetensors format.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file: name a safetensors file")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError) as error:  # numpy has no attribute float8...
        raise UserError(
            f"{path} holds no tensors in the safetensors format, or is damaged ({error}): "
            "restore it, or write it again with types that numpy has"
        ) from error
