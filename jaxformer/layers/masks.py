"""Attention masks: causal, padding and segment masks, built outside attention and combined.

Every mask is boolean, True = may attend, and broadcasts to (B, H, L, M).
"""

from typing import Any

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


def causal_mask(length: int) -> Bool[Array, "1 1 L L"]:
    """Position l sees positions m <= l (Vaswani et al. 2017, section 3.2.3)."""
    positions = jnp.arange(length)[None]
    return position_mask(positions, positions)


def position_mask(
    query_positions: Int[Array, "B L"], key_positions: Int[Array, "#B M"]
) -> Bool[Array, "B 1 L M"]:
    """A query at position p sees keys at positions <= p: the causal mask, also over a cache."""
    return (key_positions[:, None, :] <= query_positions[:, :, None])[:, None]


def padding_mask(valid_BM: Bool[Array, "B M"] | None) -> Bool[Array, "B 1 1 M"] | None:
    """No query sees a key that is padding; `valid` is True at tokens, None without padding."""
    return None if valid_BM is None else valid_BM[:, None, None, :]


def segment_mask(
    query_segments: Int[Array, "B L"], key_segments: Int[Array, "B M"]
) -> Bool[Array, "B 1 L M"]:
    """Queries see keys of their own segment only: several texts packed in one row."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def combine_masks(*masks: Bool[Array, "..."] | None) -> Bool[Array, "..."] | None:
    """Logical and of the masks that are given; None if none is.

    Raises:
        UserError: for a mask that is not boolean.
    """
    combined = None
    for mask in masks:
        if mask is not None:
            require_boolean(mask)
            combined = mask if combined is None else combined & mask
    return combined
