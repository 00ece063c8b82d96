"""Parameters to and from named PyTorch tensors, as numpy arrays, by a table of rows.

    tensors = to_torch(params, TWIN)
    params = from_torch(tensors, TWIN, like=shapes)

The table is data and is read in both directions. Conversion is all or nothing: every leaf without a
row or a tensor, every tensor without a leaf and every shape or type that does not fit is reported
in one error, one per line.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params, leaf_path
from jaxformer.models.stacked import in_form_of, unstack_layers
from jaxformer.weights.transforms import Transform


class Row(NamedTuple):
    """Which leaves are which tensor.

    `*` matches one component of a path and `**` any number of them, also none; each has the same
    value on both sides. If several rows of a table match a leaf, the first names the tensor that is
    written. Any of them is read: tied weights are often in a file twice, or by their other name.
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
        """The leaves of these shapes that a tensor of the right shape holds."""
        parts = [tensor]
        if len(shapes) > 1:
            sizes = [self.tensor([_phantom(shape)]).shape[self.axis] for shape in shapes]
            parts = np.split(tensor, np.cumsum(sizes)[:-1], self.axis)
        for transform in reversed(self.transforms):
            parts = [transform.inverse(part) for part in parts]
        return parts


class Unused(NamedTuple):
    """Tensors that files have and the model does without: buffers, other heads."""

    torch: str
    """Their name, such as `transformer.h.*.attn.bias`."""
    only_zero: bool = False
    """Whether the model does without them only if they are zero."""


Table = Iterable[Row | Unused]


def _phantom(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.int8(0), shape)


def to_torch(params: PyTree, table: Table) -> dict[str, np.ndarray]:
    """The tensors that hold these parameters, by their PyTorch names.

    Raises:
        UserError: naming every leaf without a row and every tensor that lacks a leaf.
    """
    leaves = flat_params(unstack_layers(params))
    tensors, names, problems = _assign(leaves, table)
    _refuse(problems)
    written = dict.fromkeys(first for first, *_ in names.values())
    return {
        name: row.tensor([np.asarray(leaves[path]) for path in paths])
        for name, (row, paths) in tensors.items()
        if name in written
    }


def from_torch(
    tensors: Mapping[str, Any],
    table: Table,
    like: PyTree,
    place: Callable[[np.ndarray, Any], Any] = lambda array, leaf: array,
) -> PyTree:
    """Parameters of the structure, shapes and types of `like`, filled from PyTorch's tensors.

    One tensor after the other is read and placed by `place(array, leaf of like)`, so that tensors
    that are read when they are asked for (`LazyTensors`) are never in memory all together.

    Tensors are arrays of numpy, JAX or PyTorch, of any floating-point type. Their names may have
    one prefix more than the table's (`module.`, of a wrapped model) or one less (`transformer.`, of
    a model that was saved without its head). `like` may be abstract (jax.ShapeDtypeStruct).

    Raises:
        UserError: naming, all together and one per line, every leaf without a row or a tensor,
            every tensor without a leaf, of another shape or of no floating-point type, and tensors
            that differ but are one leaf.
    """
    of_layers = unstack_layers(like)
    table, leaves = tuple(table), flat_params(of_layers)
    rows, names, problems = _assign(leaves, table)
    known, unknown = _recognize(tensors, rows, table)
    if tensors and rows and not known:
        problems.append(f"no tensor has a name of this model: {min(tensors)}, not {min(rows)}")
        _refuse(problems)
    common: Counter[str] = Counter()
    filled: dict[str, Any] = {}
    unfit: set[str] = set()
    sizes = {name: sum(leaves[path].size for path in paths) for name, (_, paths) in rows.items()}
    for name in sorted(rows, key=lambda name: -sizes[name]):  # most of a model is still to come
        row, paths = rows[name]
        if name not in known:
            continue
        given, tensor = known[name], _array(known[name], tensors[known[name]])
        shape = row.tensor([_phantom(leaves[path].shape) for path in paths]).shape
        if tensor.shape != shape:
            problems.append(f"{', '.join(paths)}: {given} is {tensor.shape}, not {shape}")
            common["look transposed"] += tensor.shape == shape[::-1]
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{', '.join(paths)}: {given} is {tensor.dtype}, not floating-point")
            common[f"are {tensor.dtype}, perhaps quantized"] += 1
        else:
            parts = row.leaves(tensor, [leaves[path].shape for path in paths])
            for path, part in zip(paths, parts, strict=True):
                array = np.array(part, leaves[path].dtype, order="C")
                if path not in filled:
                    filled[path] = place(array, leaves[path])
                elif not np.array_equal(filled[path], array, equal_nan=True):
                    problems.append(f"{path}: {given} differs from {' and '.join(names[path])}")
            continue
        unfit.update(paths)
    problems += [
        f"{path} needs {' or '.join(names[path])}, which is missing"
        for path in names
        if path not in filled and path not in unfit
    ]
    problems += [f"{name} has no leaf" for name in sorted(unknown)]
    _refuse(problems, common)
    found = jax.tree_util.tree_map_with_path(lambda path, _: filled[leaf_path(path)], of_layers)
    return in_form_of(like, found)


def matching(tensors: Mapping[str, Any], tables: Sequence[Table], like: PyTree) -> Table:
    """The table that knows most of the tensors' names; the first of several that know as many."""

    def known(table: Table) -> int:
        rows, _, _ = _assign(flat_params(unstack_layers(like)), table)
        return len(_recognize(tensors, rows, table)[0])

    return max(tables, key=known)


def _array(name: str, tensor: Any) -> np.ndarray:
    """A tensor of numpy, JAX or PyTorch in numpy."""
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            if tensor.is_floating_point() and tensor.element_size() < 4:
                tensor = tensor.float()  # exact; numpy does not know all of PyTorch's short types
        return np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is no tensor with values ({error}): give one") from error


def _assign(
    paths: Iterable[str], table: Table
) -> tuple[dict[str, tuple[Row, list[str]]], dict[str, list[str]], list[str]]:
    """Each tensor's row and leaves, each leaf's tensors in the table's order, and what has none."""
    rows: dict[str, Row] = {}
    parts: dict[str, dict[int, str]] = {}
    names: dict[str, list[str]] = {}
    problems = []
    of_leaves = [row for row in table if isinstance(row, Row)]
    for path in paths:
        for name, row, place in _matches(path, of_leaves):
            rows[name] = row
            parts.setdefault(name, {})[place] = path
            names.setdefault(path, []).append(name)
        if path not in names:
            problems.append(f"{path} has no row in the table")
    for name, row in rows.items():
        whole, there = len(row.paths), len(parts[name])
        if there != whole:
            problems.append(f"{name} is made of {whole} leaves but {there} are there")
    assigned = {
        name: (row, [parts[name][i] for i in sorted(parts[name])]) for name, row in rows.items()
    }
    return assigned, names, problems


def _matches(path: str, table: Iterable[Row]) -> Iterator[tuple[str, Row, int]]:
    """For each row that has the leaf: the tensor's name, the row and the leaf's place in it."""
    for row in table:
        for place, pattern in enumerate(row.paths):
            match = _compiled(pattern).fullmatch(path)
            if match is not None:
                name = row.torch
                for value in match.groups():
                    name = re.sub(r"\*\*\.|\*", value.replace("/", "."), name, count=1)
                yield name, row, place


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*\*/", "((?:[^/]+/)*)")
    return re.compile(escaped.replace(r"\*", "([^/]+)"))


def _recognize(
    tensors: Mapping[str, Any], rows: Iterable[str], table: Table
) -> tuple[dict[str, str], list[str]]:
    """The given name of each row's tensor, and the tensors that have neither row nor use."""
    more, less = _prefixes(set(tensors), set(rows))
    known: dict[str, str] = {}
    unknown, free = [], set(rows)
    for given in tensors:
        read_as = given, given.removeprefix(more), less + given
        name = next((name for name in read_as if name in free), None)
        if name is not None:
            known[name] = given
            free.remove(name)
        elif not any(_is_unused(name, tensors[given], table) for name in read_as):
            unknown.append(given)
    return known, unknown


def _prefixes(tensors: set[str], rows: set[str]) -> tuple[str, str]:
    """What most names have before the table's, and what the table's have before most names."""
    votes = Counter({("", ""): len(tensors & rows)})
    for name in tensors:
        votes.update((name[:i], "") for i in _starts(name) if name[i:] in rows)
    for name in rows:
        votes.update(("", name[:i]) for i in _starts(name) if name[i:] in tensors)
    return max(votes, key=lambda prefixes: votes[prefixes])


def _starts(name: str) -> Iterator[int]:
    """Where a component but the first begins."""
    return (dot.end() for dot in re.finditer(r"\.", name))


def _is_unused(name: str, tensor: Any, table: Table) -> bool:
    """Whether the model does without this tensor."""
    for row in table:
        if isinstance(row, Unused):
            pattern = _compiled(row.torch.replace(".", "/"))
            if pattern.fullmatch(name.replace(".", "/")):
                return not (row.only_zero and _array(name, tensor).any())
    return False


def _refuse(problems: Sequence[str], common: Mapping[str, int] = MappingProxyType({})) -> None:
    if problems:
        shared = ", ".join(f"{count} {what}" for what, count in common.items() if count)
        raise UserError(
            f"weights do not match the model in {len(problems)} places"
            f"{f' ({shared})' if shared else ''}: check that the model's config is the one the "
            "weights were made with, and the table that of their layout",
            problems,
        )
