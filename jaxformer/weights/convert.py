"""Parameters to and from named PyTorch tensors, as numpy arrays, by a table of rows.

    tensors = to_torch(params, TWIN)
    params = from_torch(tensors, TWIN, like=shapes)

The table is data and is read in both directions. Conversion is all or nothing: every leaf without a
row or a tensor, every tensor without a leaf and every shape that does not fit is reported in one
error.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params, leaf_path
from jaxformer.weights.transforms import Transform


class Row(NamedTuple):
    """Which leaves are which tensor.

    `*` matches one component of a path and `**` any number of them, also none; each has the same
    value on both sides.
    """

    jax: str | tuple[str, ...]
    """Path of the leaf, such as `blocks/*/mlp/up/kernel`, or the paths of several leaves that are
    joined in one tensor, in this order."""
    torch: str
    """Name of the tensor, such as `blocks.*.mlp.up.weight`."""
    transforms: tuple[Transform, ...] = ()
    """From each leaf to PyTorch, in this order."""
    axis: int = 0
    """The axis of the tensor along which several leaves are joined."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all its leaves."""
        return (self.jax,) if isinstance(self.jax, str) else self.jax

    def tensor(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor that holds these leaves."""
        for transform in self.transforms:
            leaves = [transform.forward(leaf) for leaf in leaves]
        return np.concatenate(leaves, self.axis) if len(leaves) > 1 else leaves[0]

    def leaves(self, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The leaves that a tensor holds; ValueError if it does not fit leaves of these shapes."""
        parts = [tensor]
        if len(shapes) > 1:
            sizes = [self.tensor([_phantom(shape)]).shape[self.axis] for shape in shapes]
            if self.axis >= tensor.ndim or tensor.shape[self.axis] != sum(sizes):
                raise ValueError(f"a tensor of {tensor.shape} has no parts of {sizes}")
            parts = np.split(tensor, np.cumsum(sizes)[:-1], self.axis)
        for transform in reversed(self.transforms):
            parts = [transform.inverse(part) for part in parts]
        return parts


def _phantom(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def to_torch(params: PyTree, table: Iterable[Row]) -> dict[str, np.ndarray]:
    """The tensors that hold these parameters, by their PyTorch names.

    Raises:
        UserError: naming every leaf without a row and every tensor that lacks a leaf.
    """
    leaves = flat_params(params)
    tensors, problems = _assign(leaves, table)
    _refuse(problems)
    return {
        name: row.tensor([np.asarray(leaves[path]) for path in paths])
        for name, (row, paths) in tensors.items()
    }


def from_torch(tensors: Mapping[str, np.ndarray], table: Iterable[Row], like: PyTree) -> PyTree:
    """Parameters of the structure, shapes and types of `like`, filled from PyTorch's tensors.

    `like` may be abstract (jax.ShapeDtypeStruct).

    Raises:
        UserError: naming, all together, every leaf without a row or a tensor, every tensor without
            a leaf and every pair whose shapes differ.
    """
    leaves = flat_params(like)
    wanted, problems = _assign(leaves, table)
    filled: dict[str, np.ndarray] = {}
    for name, (row, paths) in wanted.items():
        if name not in tensors:
            problems += [f"{path} needs {name}, which is missing" for path in paths]
            continue
        tensor = np.asarray(tensors[name])
        try:
            found = row.leaves(tensor, [leaves[path].shape for path in paths])
        except ValueError:
            found = [tensor] * len(paths)
        for path, array in zip(paths, found, strict=True):
            leaf = leaves[path]
            if array.shape != tuple(leaf.shape):
                problems.append(f"{path} is {tuple(leaf.shape)} but {name} gives {array.shape}")
            filled[path] = array.astype(leaf.dtype)
    problems += [f"{name} has no leaf" for name in sorted(set(tensors) - set(wanted))]
    _refuse(problems)
    return jax.tree_util.tree_map_with_path(lambda path, _: filled[leaf_path(path)], like)


def _assign(
    paths: Iterable[str], table: Iterable[Row]
) -> tuple[dict[str, tuple[Row, list[str]]], list[str]]:
    """Each tensor's row and leaves, by the tensor's name, and what does not match."""
    table = tuple(table)
    rows: dict[str, Row] = {}
    parts: dict[str, dict[int, str]] = {}
    problems = []
    for path in paths:
        match = _match(path, table)
        if match is None:
            problems.append(f"{path} has no row in the table")
            continue
        name, row, place = match
        rows[name] = row
        parts.setdefault(name, {})[place] = path
    for name, row in rows.items():
        whole, there = len(row.paths), len(parts[name])
        if there != whole:
            problems.append(f"{name} is made of {whole} leaves but {there} are there")
    return {
        name: (row, [parts[name][i] for i in sorted(parts[name])]) for name, row in rows.items()
    }, problems


def _match(path: str, table: Sequence[Row]) -> tuple[str, Row, int] | None:
    """The tensor's name, the first row that has the leaf, and the leaf's place in the row."""
    for row in table:
        for place, pattern in enumerate(row.paths):
            match = _compiled(pattern).fullmatch(path)
            if match is not None:
                name = row.torch
                for value in match.groups():
                    name = re.sub(r"\*\*\.|\*", value.replace("/", "."), name, count=1)
                return name, row, place
    return None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*\*/", "((?:[^/]+/)*)")
    return re.compile(escaped.replace(r"\*", "([^/]+)"))


def _refuse(problems: Sequence[Any]) -> None:
    if problems:
        raise UserError(
            f"weights do not match the model in {len(problems)} places: {'; '.join(problems)}; "
            "check that the model's config is the one the weights were made with"
        )
