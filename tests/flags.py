"""Flags of XLA for all tests and the processes that they start, set before jax starts."""

QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"
"""XLA's older way of compiling loops, which takes a third to a half of the time."""

AS_USERS_COMPILE = {"xla_cpu_use_fusion_emitters": True}
"""Options of one compilation, where bits or rounding count: the older way sums in another order."""
