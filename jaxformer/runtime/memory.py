"""Memory of the process and its devices: how much was held, and keeping what is freed.

XLA allocates a step's temporary buffers again at each step. glibc's malloc returns blocks of
this size to the system when they are freed, which then clears every page of them again: more than
a third of a small model's step on two cores. Other C libraries and GPUs have other allocators.
"""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Sequence

import jax

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_NEVER = 2**31 - 1


def return_freed_memory() -> None:
    """Let glibc return large blocks as they are freed: for work on arrays that come and go.

    By itself it keeps blocks of up to 32 MB, which is more than most tensors have.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**17)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step; nothing happens without glibc.

    Call it before jax starts its threads: each gets its part of the memory when it begins.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)


def peak_bytes(devices: Sequence[jax.Device]) -> int | None:
    """The most memory that one of the devices ever held; None where devices do not tell."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return max(peaks, default=None)


def memory_bytes(devices: Sequence[jax.Device]) -> int:
    """Most memory used here so far: of one device, or of the process where devices do not tell."""
    peak = peak_bytes(devices)
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
