"""Freed memory stays in the process: using it again costs no page faults."""

import platform
import subprocess
import sys

SCRIPT = """
import resource, sys
import numpy as np
from jaxformer.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(40 << 17)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(40 << 17)  # 40 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(choice: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, choice], capture_output=True, text=True)
    assert done.stderr == ""
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again():
    kept = faults("keep")
    if platform.libc_ver()[0] == "glibc":
        assert kept < faults("leave") / 10
