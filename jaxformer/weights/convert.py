"""Parameters to and from named PyTorch tensors, as numpy arrays, by a table of `tables.py`.

Conversion is all or nothing: every leaf without a row or a partner, and every shape that does not
fit, is reported in one error.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params, leaf_path
from jaxformer.weights.tables import Row


def to_torch(params: PyTree, table: Sequence[Row]) -> dict[str, np.ndarray]:
    """The tensors that hold these parameters, by their PyTorch names.

    Raises UserError naming every leaf that no row speaks of.
    """
    leaves = flat_params(params)
    parts: dict[str, dict[int, np.ndarray]] = {}
    wanted: dict[str, int] = {}
    unmatched = []
    for path, leaf in leaves.items():
        match = _torch_name(path, table)
        if match is None:
            unmatched.append(f"{path} has no row in the table")
            continue
        name, row = match
        index, count = row.part or (0, 1)
        array = np.asarray(leaf)
        parts.setdefault(name, {})[index] = array if row.axes is None else array.transpose(row.axes)
        wanted[name] = count
    for name, count in wanted.items():
        if len(parts[name]) != count:
            unmatched.append(f"{name} is made of {count} leaves but {len(parts[name])} are there")
    _refuse(unmatched)
    return {
        name: np.concatenate([found[i] for i in sorted(found)], axis=-1)
        for name, found in parts.items()
    }


def from_torch(tensors: Mapping[str, np.ndarray], table: Sequence[Row], like: PyTree) -> PyTree:
    """Parameters of the structure, shapes and types of `like`, filled from PyTorch's tensors.

    `like` may be abstract (jax.ShapeDtypeStruct). Raises UserError naming, all together, every leaf
    without a tensor, every tensor without a leaf and every pair whose shapes differ.
    """
    problems, used, filled = [], set(), {}
    for path, leaf in flat_params(like).items():
        match = _torch_name(path, table)
        if match is None:
            problems.append(f"{path} has no row in the table")
            continue
        name, row = match
        used.add(name)
        if name not in tensors:
            problems.append(f"{path} needs {name}, which is missing")
            continue
        array = _leaf_of(tensors[name], row)
        if array is None or array.shape != tuple(leaf.shape):
            shape = tensors[name].shape if array is None else array.shape
            problems.append(f"{path} is {tuple(leaf.shape)} but {name} gives {shape}")
            continue
        filled[path] = array.astype(leaf.dtype)
    problems += [f"{name} has no leaf" for name in sorted(set(tensors) - used)]
    _refuse(problems)
    return jax.tree_util.tree_map_with_path(lambda path, _: filled[leaf_path(path)], like)


def _torch_name(path: str, table: Sequence[Row]) -> tuple[str, Row] | None:
    """The tensor's name and the row that says so: the first whose JAX side matches."""
    for row in table:
        pattern = re.escape(row.jax).replace(r"\*", "([^/]+)")
        match = re.fullmatch(pattern, path)
        if match is not None:
            name = row.torch
            for value in match.groups():
                name = name.replace("*", value, 1)
            return name, row
    return None


def _leaf_of(tensor: np.ndarray, row: Row) -> np.ndarray | None:
    """The tensor's part and transposition that a row asks for; None if it has no such form."""
    tensor = np.asarray(tensor)
    if row.part is not None:
        index, count = row.part
        if tensor.ndim == 0 or tensor.shape[-1] % count:
            return None
        tensor = np.split(tensor, count, axis=-1)[index]
    if row.axes is None:
        return tensor
    # Row axes go from JAX to PyTorch; argsort inverts them.
    return tensor.transpose(np.argsort(row.axes)) if tensor.ndim == len(row.axes) else None


def _refuse(problems: Sequence[Any]) -> None:
    if problems:
        raise UserError(
            f"weights do not match the model in {len(problems)} places: {'; '.join(problems)}; "
            "check that the model's config is the one the weights were made with"
        )
