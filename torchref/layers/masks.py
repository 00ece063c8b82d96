"""Attention masks: boolean, True = may attend, broadcasting to (B, H, L, M)."""

import torch
from torch import Tensor


def causal_mask(length: int) -> Tensor:
    """Position l sees positions m <= l: (1, 1, L, L)."""
    positions = torch.arange(length)[None]
    return position_mask(positions, positions)


def position_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Query at position p sees keys at positions <= p: (B, 1, L, M)."""
    return (key_positions[:, None, :] <= query_positions[:, :, None])[:, None]


def window_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """Query at position p sees keys at positions > p - window: (B, 1, L, M)."""
    return (key_positions[:, None, :] > query_positions[:, :, None] - window)[:, None]


def padding_mask(valid_BM: Tensor | None) -> Tensor | None:
    """No query sees a key that is padding: (B, 1, 1, M); None without padding."""
    return None if valid_BM is None else valid_BM[:, None, None, :]


def segment_mask(query_segments: Tensor, key_segments: Tensor) -> Tensor:
    """Queries see keys of their own segment only: (B, 1, L, M)."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def combine_masks(*masks: Tensor | None) -> Tensor | None:
    """Logical and of the masks that are given; None if none is."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else combined & mask
    return combined
