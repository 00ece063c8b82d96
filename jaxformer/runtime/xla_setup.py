"""XLA's flags: refused if unknown, and set for reruns equal to the last bit (`--deterministic`).

Reruns on CPUs are. On GPUs XLA may add with atomics, in an order that varies, and picks kernels by
timing them, so that two compilations may differ; one flag excludes both, at the price of slower
kernels. The mesh fixes the order of sums across devices, so reruns need the same mesh.
Sources: https://openxla.org/xla/determinism;
https://github.com/openxla/xla/pull/12520 (what the flag takes with it).
"""

import mmap
import os
import shlex
from pathlib import Path

import jaxlib
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


def check_flags() -> None:
    """Refuse a flag that XLA does not know; it would end the process while jax starts.

    XLA has no list of its flags. The name of each is in its library, with a zero byte behind it; a
    flag is unknown if its name is not.

    Raises:
        UserError: naming the flags of XLA_FLAGS.
    """
    names = {} if backends_are_initialized() else _flags(os.environ.get("XLA_FLAGS", ""))
    library = max(Path(jaxlib.__file__).parent.glob("*.so"), key=_size, default=None)
    if not names or library is None:
        return
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        unknown = [flag for flag, name in names.items() if code.find(name.encode() + b"\0") < 0]
    if unknown:
        raise UserError(f"XLA_FLAGS has {' '.join(unknown)}, which XLA does not know: leave it out")


def _flags(given: str) -> dict[str, str]:
    """The name of each flag in the variable, which may name a file of flags instead."""
    try:
        words = shlex.split(given)
    except ValueError:  # quotes that do not end are XLA's to refuse
        return {}
    if not given.lstrip().startswith("-"):
        return {}
    return {word: word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}


def _size(path: Path) -> int:
    return path.stat().st_size
