"""What a proof is run on: configuration, type, seed and shapes; the same numbers for both sides.

Numbers are drawn by numpy in float64 and rounded to the type of the proof, so both sides, and the
float64 truth of a proof in bfloat16, start from exactly the same numbers. No parameter stays at its
initial value: zero biases and unit scales would hide bugs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import PyTree

from jaxformer.batch import SpecialTokens
from jaxformer.config import BertConfig, DecoderConfig, GPTConfig, TransformerConfig
from jaxformer.layers import masks
from jaxformer.layers.dropout import fold_path, keep_mask
from jaxformer.models.functional import leaf_path
from jaxformer.porting.compare import DType
from jaxformer.porting.trace import rounded
from torchref.layers import masks as torch_masks
from torchref.layers.dropout import Keep

TINY = GPTConfig(vocab_size=13, context_length=7, width=16, num_heads=4, mlp_width=31, num_layers=2)
"""What proofs are run on unless they draw their own."""

ModelConfig = GPTConfig | TransformerConfig | BertConfig | DecoderConfig
Mask = Literal[
    "causal", "padding", "source padding", "target padding", "holes", "segments", "nothing"
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a proof."""

    config: ModelConfig
    """The sizes and options; its dtype is replaced by `dtype`."""
    dtype: DType = "float64"
    seed: int = 0
    """Of every number that is drawn."""
    batch: int = 4
    """B. With few short rows the gradient of a query may be mostly rounding."""
    length: int = 7
    """L, at most the config's context length."""
    memory: int = 5
    """M, the length of the memory in cross-attention."""
    masks: tuple[Mask, ...] = ()
    """Masks that are combined. `padding` follows the last token of each row, of both sides or of
    one; `holes` are between tokens; `nothing` lets the last row of the batch attend to nothing.
    """
    jit: bool = True
    """Compile the JAX side; operation by operation is faster where shapes repeat."""
    numbers: DType | None = None
    """Type that drawn numbers are rounded to; by default that of the case."""

    def sized(self, kind: type[ModelConfig], **options: Any) -> "Case":
        """The case with a model of its config's sizes; options are fields of its config."""
        names = ("vocab_size", "context_length", "width", "num_heads", "mlp_width", "num_layers")
        sizes: dict[str, Any] = {name: getattr(self.config, name) for name in names}
        return dataclasses.replace(self, config=kind(**sizes | options))

    def with_options(self, **options: Any) -> "Case":
        """The case with these fields of its config."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **options))

    def with_dropout(self, rate: float) -> "Case":
        """The case with dropout at this rate."""
        return self.with_options(dropout_rate=rate)

    def dropping(self) -> "Case":
        """The case with dropout on."""
        return self if self.config.dropout_rate else self.with_dropout(0.2)

    @property
    def specials(self) -> SpecialTokens:
        """The last three tokens of the vocabulary."""
        V = self.config.vocab_size
        return SpecialTokens(padding=V - 3, start=V - 2, end=V - 1)

    @property
    def model_config(self) -> ModelConfig:
        """The config in the type of this case."""
        return dataclasses.replace(self.config, dtype=self.dtype)

    @property
    def truth(self) -> "Case":
        """The same case in float64, with the numbers of this one's type."""
        return dataclasses.replace(self, dtype="float64", numbers=self.number_type)

    @property
    def number_type(self) -> DType:
        """Type that drawn numbers are rounded to."""
        return self.numbers or self.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type on PyTorch's side."""
        return getattr(torch, self.dtype)

    def rng(self, name: str) -> np.random.Generator:
        """Numbers of this case for one purpose."""
        return np.random.default_rng([self.seed, *name.encode()])

    def normal(self, name: str, *shape: int) -> np.ndarray:
        """Standard normal numbers of the case's type."""
        return rounded(self.rng(name).standard_normal(shape), self.number_type)

    def tokens(self, name: str, *shape: int) -> np.ndarray:
        """Tokens of the vocabulary."""
        return self.rng(name).integers(0, self.config.vocab_size, shape)

    def to_jax(self, array: np.ndarray) -> jax.Array:
        """Floats in the case's type, others as they are."""
        return jnp.asarray(array, self.dtype if array.dtype.kind == "f" else None)

    def to_torch(self, array: np.ndarray) -> torch.Tensor:
        """Floats in the case's type, others as they are."""
        return torch.tensor(array, dtype=self.torch_dtype if array.dtype.kind == "f" else None)


def draw_params(case: Case, shapes: PyTree) -> PyTree:
    """Kernels that keep the size of what they map, other weights of size 0.5, scales near 1.

    Queries and keys are half that size: the gradient of a saturated softmax is the difference of
    nearly equal numbers, whose relative error says nothing about the program.
    """

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = leaf_path(path)
        values = case.rng(name).standard_normal(shape.shape)
        if name.endswith(("query/kernel", "key/kernel")):
            values = 0.5 * values / np.sqrt(shape.shape[0])
        elif name.endswith("kernel"):
            values = values / np.sqrt(shape.shape[0])
        elif name.endswith("scale"):
            values = 1.0 + 0.2 * values
        else:
            values = 0.5 * values
        return jnp.asarray(rounded(values, case.number_type), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def both_masks(case: Case, queries: int, keys: int) -> tuple[Any, torch.Tensor | None]:
    """The masks of the case, combined, made by each side's own functions from the same arrays.

    `causal` and `segments` are left out where queries and keys are different sequences.
    """
    B, rng = case.batch, case.rng("masks")
    valid = np.arange(keys) < rng.integers(1, keys + 1, (B, 1))
    segments = np.sort(rng.integers(0, 3, (B, keys)), axis=1)
    nothing = np.repeat(np.arange(B) < B - 1, keys).reshape(B, keys)
    ours: list[Any] = []
    theirs: list[torch.Tensor | None] = []
    for kind in case.masks:
        if kind == "causal" and queries == keys:
            ours.append(masks.causal_mask(keys))
            theirs.append(torch_masks.causal_mask(keys))
        if kind == "segments" and queries == keys:
            ours.append(masks.segment_mask(jnp.asarray(segments), jnp.asarray(segments)))
            tensor = torch.tensor(segments)
            theirs.append(torch_masks.segment_mask(tensor, tensor))
        if kind in ("padding", "nothing"):
            rows = valid if kind == "padding" else nothing
            ours.append(masks.padding_mask(jnp.asarray(rows)))
            theirs.append(torch_masks.padding_mask(torch.tensor(rows)))
    return masks.combine_masks(*ours), torch_masks.combine_masks(*theirs)


def both_masks_in_parts(case: Case, queries: int, keys: int) -> tuple[masks.Mask, Any]:
    """`both_masks` with our side's as a causal flag, lengths of rows, and the rest as an array."""
    B, rng = case.batch, case.rng("masks")
    lengths = rng.integers(1, keys + 1, (B, 1))[:, 0] if "padding" in case.masks else None
    if "nothing" in case.masks:
        lengths = np.where(np.arange(B) < B - 1, keys if lengths is None else lengths, 0)
    others = tuple(kind for kind in case.masks if kind in ("segments", "holes"))
    ours = masks.Mask(
        causal="causal" in case.masks and queries == keys,
        lengths_B=None if lengths is None else jnp.asarray(lengths, jnp.int32),
        dense_BHLM=both_masks(dataclasses.replace(case, masks=others), queries, keys)[0],
    )
    return ours, both_masks(case, queries, keys)[1]


def valid_tokens(case: Case, length: int, side: str = "") -> np.ndarray | None:
    """True at the tokens of each row of a side, (B, length); None if there is no padding."""
    kinds = {kind.removeprefix(f"{side} ") for kind in case.masks}
    if not kinds & {"padding", "holes", "nothing"}:
        return None
    valid, rng = np.ones((case.batch, length), bool), case.rng(f"{side} padding")
    if "padding" in kinds:
        valid &= np.arange(length) < rng.integers(1, length + 1, (case.batch, 1))
    if "holes" in kinds:
        valid &= rng.random((case.batch, length)) < 0.6
    if "nothing" in kinds:
        valid[-1] = False
    return valid


def both_inputs(
    case: Case, arrays: Sequence[np.ndarray | None]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A model's arguments on both sides: the arrays, then the dropout key and its masks."""
    key = None if case.config.dropout_rate == 0.0 else dropout_key(case)
    keep = None if key is None else keep_for(case, key)
    ours = [None if array is None else case.to_jax(array) for array in arrays]
    theirs = [None if array is None else case.to_torch(array) for array in arrays]
    return (*ours, key), (*theirs, keep)


def dropout_key(case: Case) -> jax.Array:
    """The key of the case's dropout."""
    return jax.random.key(case.seed)


def keep_for(case: Case, key: jax.Array) -> Keep:
    """PyTorch's form of a dropout key: at every path the mask that jaxformer draws there."""

    def mask(path: tuple[str | int, ...], rate: float, shape: tuple[int, ...]) -> torch.Tensor:
        # jax draws other bits in x64 mode; the float64 truth needs the masks of the case's type.
        with jax.enable_x64(case.number_type == "float64"):
            folded = fold_path(key, *path)
            assert folded is not None
            return torch.tensor(np.asarray(keep_mask(folded, rate, shape)))

    return Keep(mask)
