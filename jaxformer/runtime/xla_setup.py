"""XLA's flags for reruns that are equal to the last bit (`--deterministic`).

Reruns on CPUs are. On GPUs XLA may add with atomics, in an order that varies, and picks kernels by
timing them, so that two compilations may differ; one flag excludes both, at the price of slower
kernels. The mesh fixes the order of sums across devices, so reruns need the same mesh.
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
