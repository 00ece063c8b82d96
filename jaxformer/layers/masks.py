"""Attention masks: causal, padding and segment masks, built outside attention and combined.

An array is boolean, True = may attend, and broadcasts to (B, H, L, M). A `Mask` keeps what is
causal and what is padding apart from it, so that attention by blocks needs no array of L x M.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxformer.errors import UserError


def require_boolean(mask: Any) -> None:
    """Refuse a mask of another type: added to scores, as PyTorch's may be, 0 means may attend."""
    dtype = getattr(mask, "dtype", type(mask).__name__)
    if str(dtype) != "bool":
        raise UserError(
            f"a mask is {dtype}, not boolean, True = may attend: give mask == 0 for one that is "
            "added to scores, mask != 0 for one of zeros and ones"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """What a query may attend to: the keys that every part which is given allows."""

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    """Query l sees keys m <= l."""
    lengths_B: Any = None
    """Int[Array, " B"]: every query of row b sees keys m < lengths[b]."""
    dense_BHLM: Any = None
    """Bool[Array, "#B #H #L #M"]: any others."""
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Query l sees keys m > l - window."""


CAUSAL = Mask(causal=True)
"""`causal_mask` of any length."""


def causal_mask(length: int) -> Bool[Array, "1 1 L L"]:
    """Position l sees positions m <= l (Vaswani et al. 2017, section 3.2.3)."""
    positions = jnp.arange(length)[None]
    return position_mask(positions, positions)


def position_mask(
    query_positions: Int[Array, "B L"], key_positions: Int[Array, "#B M"]
) -> Bool[Array, "B 1 L M"]:
    """A query at position p sees keys at positions <= p: the causal mask, also over a cache."""
    return (key_positions[:, None, :] <= query_positions[:, :, None])[:, None]


def window_mask(
    query_positions: Int[Array, "B L"], key_positions: Int[Array, "#B M"], window: int
) -> Bool[Array, "B 1 L M"]:
    """A query at position p sees keys at positions > p - window: with the causal mask, its own and
    the window - 1 before it (Beltagy et al. 2020, section 3.1; Jiang et al. 2023, section 2)."""
    return (key_positions[:, None, :] > query_positions[:, :, None] - window)[:, None]


def padding_mask(
    valid: Bool[Array, "B M"] | Int[Array, " B"] | None,
) -> Bool[Array, "B 1 1 M"] | Mask | None:
    """No query sees a key that is padding.

    Args:
        valid: True at tokens, or the number of tokens in each row if padding follows them; None
            without padding.
    """
    if valid is None:
        return None
    return Mask(lengths_B=valid) if valid.ndim == 1 else valid[:, None, None, :]


def segment_mask(
    query_segments: Int[Array, "B L"], key_segments: Int[Array, "B M"]
) -> Bool[Array, "B 1 L M"]:
    """Queries see keys of their own segment only: several texts packed in one row."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def combine_masks(
    *masks: Mask | Bool[Array, "..."] | None,
) -> Mask | Bool[Array, "..."] | None:
    """Logical and of the masks that are given; None if none is, an array if all are arrays.

    Raises:
        UserError: for an array that is not boolean.
    """
    if not any(isinstance(mask, Mask) for mask in masks):
        return _logical_and(*masks)
    parts = [as_mask(mask) for mask in masks]
    lengths = [mask.lengths_B for mask in parts if mask.lengths_B is not None]
    windows = [mask.window for mask in parts if mask.window is not None]
    return Mask(
        causal=any(mask.causal for mask in parts),
        lengths_B=functools.reduce(jnp.minimum, lengths) if lengths else None,
        dense_BHLM=_logical_and(*(mask.dense_BHLM for mask in parts)),
        window=min(windows, default=None),
    )


def as_mask(mask: Mask | Bool[Array, "..."] | None) -> Mask:
    """A mask of any kind by its parts.

    Raises:
        UserError: for an array that is not boolean.
    """
    return mask if isinstance(mask, Mask) else Mask(dense_BHLM=_logical_and(mask))


def dense_mask(
    mask: Mask | Bool[Array, "..."] | None, queries: int, keys: int
) -> Bool[Array, "..."] | None:
    """A mask of any kind as one array, which broadcasts to (B, H, L, M).

    Raises:
        UserError: for an array that is not boolean.
    """
    mask, places = as_mask(mask), jnp.arange(keys)
    pairs = jnp.arange(queries)[None], places[None]
    causal = position_mask(*pairs) if mask.causal else None
    recent = None if mask.window is None else window_mask(*pairs, mask.window)
    within = None if mask.lengths_B is None else places < mask.lengths_B[:, None, None, None]
    return _logical_and(causal, recent, within, mask.dense_BHLM)


def _logical_and(*arrays: Any) -> Bool[Array, "..."] | None:
    combined = None
    for array in arrays:
        if array is not None:
            require_boolean(array)
            combined = array if combined is None else combined & array
    return combined
