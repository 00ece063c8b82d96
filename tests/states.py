"""The items of small training states of random bits, and what it means that two are equal."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.checkpoint import CheckpointWriter


def bits(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Random bit patterns: among the floats are NaNs with payloads, infinities and subnormals."""
    rng = np.random.default_rng(seed)
    if dtype in ("bool", "int4"):
        return jnp.asarray(rng.integers(0, 2, shape), dtype)
    width = jnp.dtype(dtype).itemsize
    return jnp.asarray(rng.integers(0, 256, (*shape, width), np.uint8).view(dtype)[..., 0])


def small_state(seed: int) -> dict[str, Any]:
    return {
        "params": {"w": bits(seed, (8, 4), "float32"), "b": bits(seed + 1, (4,), "bfloat16")},
        "optimizer": {"key": bits(seed + 2, (2,), "uint32"), "step": jnp.int32(seed)},
    }


def abstract(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same_bits(restored: Any, saved: Any) -> None:
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(saved))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def snapshot(directory: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [directory, *directory.rglob("*")]
    }


def save_all(directory: Path, numbers: list[int], keep: int = 9) -> None:
    with CheckpointWriter(directory, keep=keep) as writer:
        for number in numbers:
            writer.save(number, small_state(number), {"position": number})
