"""A number is rounded first, then its unit is chosen: no number reads 1000.0 k or 1:60."""

import math

import pytest

from jaxformer.units import count, duration, short_time, size


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (830.4, "830"),
        (999.4, "999"),
        (999.6, "1.0 k"),
        (45_100, "45.1 k"),
        (999_940, "999.9 k"),
        (999_960, "1.0 M"),
        (-999_960, "-1.0 M"),
        (999.96e6, "1.0 G"),
        (999.96e9, "1.0 T"),
        (2.5e15, "2,500.0 T"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
    ],
)
def test_a_count_has_one_digit_after_the_point_and_the_prefix_of_its_size(number, shown):
    assert count(number) == shown


def test_a_count_with_more_digits_is_rounded_to_them_first():
    assert count(999_960, digits=3) == "999.960 k"
    assert count(999_999.6, digits=3) == "1.000 M"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (3 << 20, "3.00 MiB"),
        (2**30 - 2**14, "1,023.98 MiB"),
        (2**30 - 1, "1.00 GiB"),
        (5 << 30, "5.00 GiB"),
        (1 << 40, "1.00 TiB"),
        (math.inf, "inf"),
    ],
)
def test_a_size_is_in_powers_of_1024(number, shown):
    assert size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.00 µs"),
        (12.5e-6, "12.50 µs"),
        (999.996e-6, "1.00 ms"),
        (0.25, "250.00 ms"),
        (0.999996, "1.00 s"),
        (75.0, "75.00 s"),
    ],
)
def test_a_short_time_is_in_the_unit_of_its_size(seconds, shown):
    assert short_time(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (62, "1:02"),
        (3599.6, "1:00:00"),
        (11_045, "3:04:05"),
        (360_000, "100:00:00"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_duration_carries_into_minutes_and_hours(seconds, shown):
    assert duration(seconds) == shown
