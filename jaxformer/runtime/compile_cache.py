"""The cache of compiled programs on disk: what one process compiled, later ones load.

The programs lie in the user's cache, those of each kind of processor by themselves: code for the
instructions of one may not run on another that shares the home. JAX finds a program by its
operations, the compiler, its flags and the device.
Source: https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
"""

import os
import platform
import warnings
import zlib
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.user_cache import default_cache

SETTINGS = {
    "jax_compilation_cache_max_size": 2**30,
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}
"""Settings of JAX unless the environment has them: bytes of all programs of one kind of processor,
beyond which JAX deletes the least recently used, and seconds from which on a program is kept."""
COMPLAINTS = "Error (reading|writing) persistent compilation cache|Cache value for key"
"""How JAX says that it did without the cache; the program is compiled then."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of this machine's processor: architecture and a checksum of its features."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def cache_dir() -> Path:
    """Where programs for this processor lie.

    Raises:
        UserError: the user has no home.
    """
    return default_cache().absolute() / f"jax-{processor()}"


def enable_compile_cache() -> None:
    """Let JAX keep and find compiled programs on disk.

    Nothing happens if JAX's own settings say where the programs lie or that none is kept, if the
    directory cannot be written, or on CPUs in several processes: of these JAX lets the first alone
    write, and it would wait at a collective for those that compile, longer than a CPU waits.
    """
    import jax  # which reads the environment when it is imported: conftest.py calls `processor`

    config: Any = jax.config  # its settings have no types
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        return
    try:
        place = cache_dir()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_interrupted(place)
    except (OSError, UserError):
        return
    if not os.access(place, os.W_OK):
        return
    warnings.filterwarnings("ignore", COMPLAINTS)
    for name, value in {"jax_compilation_cache_dir": str(place), **SETTINGS}.items():
        if name.upper() not in os.environ:
            config.update(name, value)


def _remove_interrupted(place: Path) -> None:
    """Delete programs without their time of use, which a killed process leaves.

    JAX cannot find the least recently used beside one, and would write none any more.
    """
    for program in place.glob("*-cache"):
        if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
            program.unlink(missing_ok=True)
