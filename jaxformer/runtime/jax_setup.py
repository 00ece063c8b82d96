"""The settings of JAX: those that a run refuses, those that belong to it, and the start of JAX.

JAX reads its settings from the environment when it is imported (`JAX_ENABLE_X64`); `jax.config`
changes them later.
Source: https://docs.jax.dev/en/latest/config_options.html
"""

import os
from typing import Any

import jax

from jaxformer.errors import UserError
from jaxformer.runtime.xla_setup import check_flags

_GUARDS = ("", "_host_to_device", "_device_to_host", "_device_to_device")
REFUSED: dict[str, tuple[Any, ...]] = {
    "jax_no_tracing": (True,),
    "jax_no_execution": (True,),
    "jax_numpy_rank_promotion": ("raise",),
    "jax_numpy_dtype_promotion": ("strict",),
    **{f"jax_transfer_guard{way}": ("disallow", "disallow_explicit") for way in _GUARDS},
}
"""Values of settings that forbid what the models, Optax or Orbax do."""
OF_THE_RUN = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
)
"""Settings that determine random draws and the precision of products; a resumed run keeps them."""
OF_THE_COMPILER = ("jax_disable_jit",)
"""Settings that may change the last bits, as another version of JAX may."""


def start_jax() -> None:
    """Let JAX find its devices.

    Raises:
        UserError: a setting forbids what the models do, or JAX finds no device; names the variable.
    """
    for name, refused in REFUSED.items():
        if (value := getattr(jax.config, name)) in refused:
            raise UserError(
                f"{name.upper()}={value} forbids what the models and their optimizers do: unset it"
            )
    check_flags()
    try:
        jax.devices()
    except Exception as error:
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
        given = " ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        reason = str(error) or "there is no such device, or no JAX for it"
        advice = f"change or unset {given}" if given else "set JAX_PLATFORMS=cpu to do without it"
        raise UserError(f"JAX cannot start: {reason}: {advice}") from error


def settings(*names: str) -> dict[str, Any]:
    """The values of these settings, which JSON can hold, by their names in the environment."""
    return {name.upper(): getattr(jax.config, name) for name in names}
