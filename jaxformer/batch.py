"""The batch that the data room makes and a train step takes."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Int


class Batch(NamedTuple):
    """Numpy arrays as the data room makes them, jax arrays once they are placed on a mesh."""

    inputs: Int[Any, "B L"]
    """Token ids, int32."""
    targets: Int[Any, "B L"]
    """The token after each input, int32."""
    mask: Bool[Any, "B L"]
    """True where the target counts in the loss."""
