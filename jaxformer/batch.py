"""The batch that data makes and a train step takes."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int


class Batch(NamedTuple):
    """Tokens, the tokens that follow them, and which of those count in the loss.

    Numpy arrays as the data room makes them, jax arrays once they are placed on a mesh.
    """

    inputs: Int[Array, "B L"]
    targets: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
