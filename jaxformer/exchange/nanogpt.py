"""Checkpoints of nanoGPT, ckpt.pt: a pickle of which `torch.load(weights_only=True)` reads no code.

Its model is GPT with the exact GELU, with or without biases, its projections are torch.nn.Linear:
the twin rule under the names of its model.py. `_orig_mod.` before a name is what torch.compile
adds. Source: https://github.com/karpathy/nanoGPT, model.py
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.config import GPTConfig
from jaxformer.errors import UserError
from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.files import LazyTensors
from jaxformer.weights.transforms import Transpose
from jaxformer.weights.twin import beneath

_LAYER = "transformer.h.*"


def _query_key_value(leaf: str) -> tuple[str, ...]:
    return tuple(f"blocks/*/attention/{part}/{leaf}" for part in ("query", "key", "value"))


TABLE: tuple[Row | Unused, ...] = (
    *beneath("embed", "transformer.wte"),
    *beneath("positions", "transformer.wpe"),
    Row(_query_key_value("kernel"), f"{_LAYER}.attn.c_attn.weight", (Transpose((1, 0)),)),
    Row(_query_key_value("bias"), f"{_LAYER}.attn.c_attn.bias"),
    *beneath("blocks/*/attention/out", f"{_LAYER}.attn.c_proj"),
    *beneath("blocks/*/mlp/up", f"{_LAYER}.mlp.c_fc"),
    *beneath("blocks/*/mlp/down", f"{_LAYER}.mlp.c_proj"),
    *beneath("blocks/*/attention_norm", f"{_LAYER}.ln_1"),
    *beneath("blocks/*/mlp_norm", f"{_LAYER}.ln_2"),
    *beneath("norm", "transformer.ln_f"),
    Row("embed/embedding", "lm_head.weight"),
    Unused(f"{_LAYER}.attn.bias"),  # the causal mask, without flash attention
)
"""From our paths to nanoGPT's names."""
SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "width",
    "n_head": "num_heads",
    "n_layer": "num_layers",
}
"""Its model_args and our fields."""


def open_checkpoint(path: Path) -> tuple[GPTConfig, LazyTensors]:
    """The config and the tensors of a ckpt.pt.

    Raises:
        UserError: without PyTorch; the file is damaged, holds more than tensors and numbers, or is
            no checkpoint of nanoGPT.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f'{path} is read by PyTorch: pip install "jaxformer[torch]"')
    import torch

    try:  # mapped, not read: tensors are read one after the other
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of what is damaged, PyTorch raises errors of many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is no checkpoint of tensors and numbers alone, or is damaged ({first}): save "
            "it again with torch.save, its model and model_args only"
        ) from None
    model, sizes = (
        found.get(key) if isinstance(found, dict) else None for key in ("model", "model_args")
    )
    if not (isinstance(model, dict) and isinstance(sizes, dict)):
        raise UserError(f"{path} has no model and model_args: name the ckpt.pt of nanoGPT")
    unknown = sizes.keys() - SIZES.keys() - {"bias", "dropout"}
    lacking = [key for key in SIZES if type(sizes.get(key)) is not int]
    if unknown or lacking:
        which = ", ".join(sorted(unknown) or lacking)
        verb = "has the unknown" if unknown else "lacks"
        raise UserError(f"{path}: its model_args {verb} {which}: name a checkpoint of nanoGPT")
    config = GPTConfig(
        **{ours: sizes[theirs] for theirs, ours in SIZES.items()},
        mlp_width=4 * sizes["n_embd"],
        activation="gelu",
        use_bias=bool(sizes.get("bias", True)),
        dropout_rate=float(sizes.get("dropout", 0.0)),
    )
    readers = {name: _reader(tensor) for name, tensor in model.items()}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in model.items()}
    return config, LazyTensors(readers, types)


def _reader(tensor: Any) -> Any:
    def read() -> np.ndarray:
        wide = tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
        return wide.numpy()

    return read
