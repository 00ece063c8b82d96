"""The types of a test: float64 in every run of the tests, float32 too in the full counts.

`test_layers.py`, `test_gpt.py` and `test_sampling.py` draw both in every run.
"""

import pytest

EACH_DTYPE = ["float64", pytest.param("float32", marks=pytest.mark.slow)]
DTYPES = pytest.mark.parametrize("dtype", EACH_DTYPE)
