"""Flags of XLA for all tests and the processes that they start, set before jax starts."""

from importlib.metadata import version

_KNOWN = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12)
"""jaxlib 0.12 compiles loops in the new way alone, and ends where it does not know a flag."""

QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false" if _KNOWN else ""
"""XLA's older way of compiling loops, which takes a third to a half of the time."""

AS_USERS_COMPILE = {"xla_cpu_use_fusion_emitters": True} if _KNOWN else {}
"""Options of one compilation, where bits or rounding count: the older way sums in another order."""
