"""What a GPU runs of a compiled program, read from its text: kernels, library calls, arrays.

    compiled = jax.jit(step, ...).lower(state, batch).compile()
    kernels = read_kernels(compiled.as_text())

The text is that of one GPU's program (HLO, `compile().as_text()`), after XLA has fused it: every
instruction that runs launches a kernel, or calls a library, but for those that only name or pass on
arrays. What is inside a fusion is one kernel's. A loop's body counts by its trips.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from jaxformer.planning.hlo import CALLS, Instruction, array_bytes, executed

NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"} | {
    *("opt-barrier", "add-dependency", "partition-id", "replica-id", "async-update", "async-done"),
    *CALLS,
}
"""Operations that name or pass on arrays, or whose computations count by themselves."""
FUSIONS = {"kLoop": "elementwise", "kInput": "reduction"}
"""What XLA's kinds of fusion are: one element per thread; reductions, transpositions, scatters."""


class Kernels(NamedTuple):
    """What one run of a program launches, and the arrays that its kernels write."""

    launches: Mapping[str, int]
    """Number by kind, most first: `elementwise` and `reduction` fusions, `triton_gemm` and other
    generated code, a library by its call (`__cublas$gemm`), an operation such as `copy`."""
    custom_calls: Mapping[str, int]
    """Those of `launches` that call a library, such as cuDNN's attention `__cudnn$fmhaSoftmax`."""
    arrays: Mapping[str, int]
    """How often an array such as f32[16,1024] is written, the largest first."""
    at_least: bool
    """Whether all numbers are lower bounds: a loop of unknown trip count counts once."""

    @property
    def total(self) -> int:
        """All launches."""
        return sum(self.launches.values())


def read_kernels(compiled_text: str) -> Kernels:
    """The kernels of a program; `compile().as_text()` is the text."""
    launches: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    arrays: Counter[str] = Counter()
    at_least = False
    for one in executed(compiled_text):
        if one.operation in NO_LAUNCH or one.operation.endswith("-done"):
            continue
        kind = launch_kind(one)
        launches[kind] += one.times
        if one.operation == "custom-call":
            calls[kind] += one.times
        for array in one.arrays:
            arrays[array] += one.times
        at_least |= one.at_least
    largest = sorted(arrays.items(), key=lambda item: -array_bytes(item[0]))
    return Kernels(dict(launches.most_common()), dict(calls.most_common()), dict(largest), at_least)


def launch_kind(one: Instruction) -> str:
    """What an instruction launches, by the names of `Kernels.launches`."""
    if one.operation == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', one.attributes)
        return target[1] if target else one.operation
    if one.operation == "fusion":
        kind = re.search(r"kind=(\w+)", one.attributes)
        backend = re.search(r'"kind":"_*(\w+)"', one.attributes)
        assert kind is not None, one.attributes
        return FUSIONS.get(kind[1]) or (backend[1] if backend else kind[1])
    return one.operation.removesuffix("-start")
