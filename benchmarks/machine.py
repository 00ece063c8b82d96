"""What the machine itself can do: matrix products and copies of memory, by both libraries.

    python -m benchmarks.machine

The other benchmarks measure the same beside their own sides. The copy is read and written, so its
bytes count twice.
"""

import sys
from typing import Any

from benchmarks.comparison import Benchmark, Entrant, parser
from benchmarks.side import Done, Work

PRODUCT, COPIED = 2048, 2**28


def jax_product(n: int, dtype: str) -> Work:
    """(n, n) times (n, n)."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: Done([float(jax.block_until_ready(product(x, x))[0, 0])])


def jax_copy(size: int) -> Work:
    """An array of `size` bytes plus one, into another."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return lambda: Done([float(jax.block_until_ready(copy(x))[0])])


def torch_product(n: int, dtype: str, device: str) -> Work:
    """(n, n) times (n, n)."""
    import torch

    x = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    x = x.to(device, getattr(torch, dtype))
    y = torch.empty_like(x)
    return lambda: Done([float(torch.matmul(x, x, out=y)[0, 0])])


def torch_copy(size: int, device: str) -> Work:
    """An array of `size` bytes plus one, into another."""
    import torch

    x = torch.zeros(size // 4, device=device)
    y = torch.empty_like(x)
    return lambda: Done([float(torch.add(x, 1, out=y)[0])])


def measure(
    benchmark: Benchmark, n: int = PRODUCT, dtype: str = "float32", device: str = "cpu"
) -> None:
    """The machine's limits as two cases of a benchmark."""
    counts: dict[str, Any] = {"all": {"GFLOP": 2 * n**3 / 1e9}}
    benchmark.compare(
        f"product {n} x {n}, {dtype}",
        [
            Entrant("jax", "benchmarks.machine:jax_product", {"n": n, "dtype": dtype}),
            Entrant(
                "torch",
                "benchmarks.machine:torch_product",
                {"n": n, "dtype": dtype, "device": device},
            ),
        ],
        per_second=counts,
    )
    benchmark.compare(
        f"copy of {COPIED / 2**20:.0f} MiB",
        [
            Entrant("jax", "benchmarks.machine:jax_copy", {"size": COPIED}),
            Entrant("torch", "benchmarks.machine:torch_copy", {"size": COPIED, "device": device}),
        ],
        per_second={"all": {"GB": 2 * COPIED / 1e9}},
    )


def main() -> int:
    """Measure and print."""
    benchmark = Benchmark("machine", parser(__doc__, repetitions=15).parse_args())
    measure(benchmark)
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
