"""Settings every proof shares; they have to stand before jax starts."""

import os

from hypothesis import Phase, settings
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Every call of these rooms' functions has its shapes and types checked.
install_import_hook(
    [f"jaxformer.{room}" for room in ("layers", "models", "training", "decoding", "weights")],
    "beartype.beartype",
)

# Every drawn shape is compiled: few examples, the same in every run, and none spent on shrinking.
settings.register_profile(
    "parity",
    deadline=None,
    max_examples=8,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("parity")
