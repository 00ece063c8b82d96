"""Every setting that changes arithmetic, set in one place and printed in the report.

A proof runs under `arithmetic(dtype)`: float64 needs jax's x64 mode, which is off for the other
types as it is for users; matrix products are not rounded to TF32 or bfloat16 on either side;
PyTorch uses deterministic algorithms.
"""

import contextlib
import os
import platform
from collections.abc import Iterator

import flax
import jax
import optax
import torch

from jaxformer.porting.compare import DType

MATMUL_PRECISION = "highest"


@contextlib.contextmanager
def arithmetic(dtype: DType) -> Iterator[None]:
    """Run the block with the settings of a proof in this type, then restore the old ones."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # proofs are tiny: threads only wait for each other
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    before = {name: getattr(jax.config, name) for name in names}
    # For the whole process, not only this thread: Orbax restores in its own threads.
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def described() -> dict[str, str]:
    """The settings, the versions and the hardware, by name."""
    return {
        "jax_default_matmul_precision": MATMUL_PRECISION,
        "jax_enable_x64": "on for float64, off otherwise",
        "TF32": "off in jax (by the precision above) and in torch",
        "torch deterministic algorithms": "on",
        "layer norm": "two-pass variance, float32 or wider",
        "softmax and loss": "float32 or wider",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "not set"),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].device_kind} (jax), cpu (torch)",
        "threads": f"{os.cpu_count()} cores, 1 torch thread",
    }
