"""Reruns that are equal to the last bit.

On CPUs they are so by themselves. On GPUs XLA may add with atomics, whose order is that of the
moment, and picks kernels by racing them, so that two compilations may differ; one flag leaves the
former out and switches the latter off, at the price of slower kernels. Sums across devices are
taken in an order that a mesh fixes, so reruns need the same mesh.
Sources: https://openxla.org/xla/determinism;
https://github.com/openxla/xla/pull/12520 (what the flag takes with it).
"""

import os

from jax._src.xla_bridge import backends_are_initialized  # jax has no public name for it

from jaxformer.errors import UserError

FLAG = "--xla_gpu_deterministic_ops"


def make_deterministic() -> None:
    """Set XLA's flag, which it reads once, when jax starts.

    Raises:
        UserError: jax has started without it, or XLA_FLAGS says the opposite.
    """
    given = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith(FLAG)]
    if given in ([FLAG], [f"{FLAG}=true"], [f"{FLAG}=1"]):
        return
    if given:
        raise UserError(f"XLA_FLAGS has {' '.join(given)}: leave that out or --deterministic")
    if backends_are_initialized():
        raise UserError(
            f"jax has already started, too late for --deterministic: set XLA_FLAGS={FLAG}=true "
            "before the process starts"
        )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=true".strip()
