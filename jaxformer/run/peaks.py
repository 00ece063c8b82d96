"""How fast a device could be, and the share of it that a training step uses (MFU).

The peaks are those of NVIDIA's data sheets, for dense matrices: "A100 Tensor Core GPU", "H100
Tensor Core GPU", "H200 Tensor Core GPU", "V100 Tensor Core GPU", "T4", "L4 Tensor Core GPU",
"GeForce RTX 4090" (Ada architecture whitepaper), "DGX B200". A device that is not in the table has
no peak here: its share is left out rather than made up.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jax

Product = Literal["float16", "bfloat16", "tensorfloat32", "float32"]
"""The arithmetic of the matrix products; JAX multiplies float32 arrays in tensorfloat32 on GPUs
that have it, unless the matrix product precision says otherwise."""

_H100_SXM = (989.4e12, 989.4e12, 494.7e12, 66.9e12)

_PEAKS: tuple[tuple[str, tuple[float | None, float | None, float | None, float]], ...] = (
    # device_kind              float16    bfloat16   tensorfloat32  float32, in FLOP/s
    (r"NVIDIA A100.*", (312e12, 312e12, 156e12, 19.5e12)),
    (r"NVIDIA H100 80GB HBM3", _H100_SXM),
    (r"NVIDIA H100 PCIe", (756e12, 756e12, 378e12, 51e12)),
    (r"NVIDIA H200", _H100_SXM),
    (r"NVIDIA B200", (2250e12, 2250e12, 1100e12, 75e12)),
    (r"Tesla V100-SXM.*", (125e12, None, None, 15.7e12)),
    (r"Tesla T4", (65e12, None, None, 8.1e12)),
    (r"NVIDIA L4", (121e12, 121e12, 60e12, 30.3e12)),
    (r"NVIDIA GeForce RTX 4090", (165.2e12, 165.2e12, 82.6e12, 82.6e12)),
)
_COLUMNS: tuple[Product, ...] = ("float16", "bfloat16", "tensorfloat32", "float32")


def device_peak_flops(device: "jax.Device", product: Product) -> float | None:
    """Peak FLOP/s of a device's dense matrix products, None where no data sheet is known.

    A product that the device's tensor cores do not have, such as bfloat16 on a V100, is None too.
    """
    for kind, peaks in _PEAKS:
        if re.fullmatch(kind, device.device_kind):
            return peaks[_COLUMNS.index(product)]
    return None


def mfu(
    flops_per_step: float,
    step_seconds: float,
    devices: Sequence["jax.Device"],
    product: Product,
) -> float | None:
    """Model FLOPs utilisation: flops_per_step / (step_seconds * summed peaks of the devices).

    flops_per_step counts what the model needs, not what rematerialisation repeats. The share is
    from 0 to 1; None if the peak of one device is not known. Source: Chowdhery et al. 2022, PaLM,
    section 4.1 and appendix B.
    """
    peaks = [device_peak_flops(device, product) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks):
        return None
    return flops_per_step / (step_seconds * sum(known))
