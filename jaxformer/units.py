"""Numbers as people read them, with a unit or prefix that fits: 45.1 k, 1.50 GiB, 3:04:05.

A number is rounded before its unit is chosen, so 999.96 thousand is 1.0 M and not 1000.0 k. One
that is not finite has no unit: inf, nan.
"""

import math
from collections.abc import Sequence


def count(number: float, digits: int = 1) -> str:
    """A number with the prefix of its size, up to T: 830, 45.1 k, 1.2 M."""
    return _scaled(number, ("", " k", " M", " G", " T"), 1000, digits)


def size(number: float) -> str:
    """Bytes up to TiB, a KiB being 1024 of them: 512 B, 1.50 GiB."""
    return _scaled(number, (" B", " KiB", " MiB", " GiB", " TiB"), 1024, 2)


def short_time(seconds: float) -> str:
    """The time of one operation, in µs, ms or s: 12.50 µs, 1.20 s."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if round(seconds * factor, 2) < 1000:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds:.2f} s"


def duration(seconds: float) -> str:
    """The time of a run, as minutes and seconds or with hours: 1:02, 3:04:05."""
    if not math.isfinite(seconds):
        return f"{seconds}"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _scaled(number: float, units: Sequence[str], base: int, digits: int) -> str:
    """`digits` after the point, but for the first unit, which is not divided."""
    if not math.isfinite(number):
        return f"{number}"
    power = 0
    while power < len(units) - 1 and round(abs(number) / base**power, digits * (power > 0)) >= base:
        power += 1
    return f"{number / base**power:,.{digits * (power > 0)}f}{units[power]}"
