"""Keeping freed memory in the process, for where the CPU is the device.

XLA asks for a step's temporary buffers anew at each step. glibc's malloc gives blocks of this size
back to the system when they are freed, which then clears every page of them again: more than a
third of a small model's step on two cores. Other C libraries, and GPUs, have their own allocators.
"""

import contextlib
import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for the next step; nothing happens without glibc.

    Call it before jax starts its threads: each gets its part of the memory when it begins.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)
