"""GPUs as their data sheets describe them, and the share of them that a training step uses (MFU).

The one table of what a device could do: FLOP/s of dense matrix products, memory, the speed of that
memory and of the links to other devices of its machine. All figures are NVIDIA's, each of the data
sheet of that name: "V100 Tensor Core GPU" (SXM2), "T4", "L4 Tensor Core GPU", "A100 Tensor Core
GPU" (SXM), "H100 Tensor Core GPU" (SXM and PCIe), "H200 Tensor Core GPU", "DGX B200" (an eighth of
the machine's), "Ada GPU architecture" (GeForce RTX 4090). A device that is not in the table has no
peak here: its share is left out rather than made up. The chips, for which XLA's GPU compiler makes
programs, are those of "NVIDIA A100 Tensor Core GPU Architecture", "NVIDIA H100 Tensor Core GPU
Architecture" (white papers) and the tables of compute capabilities of the CUDA C++ Programming
Guide.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jax

Product = Literal["bfloat16", "tensorfloat32", "float32"]
"""The arithmetic of the matrix products; JAX multiplies float32 arrays in tensorfloat32 on GPUs
that have it, unless the matrix product precision says otherwise."""

_COLUMNS: tuple[Product, ...] = ("bfloat16", "tensorfloat32", "float32")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a compiler asks of a GPU beside its memory."""

    name: str
    """As the driver has it."""
    capability: str
    """CUDA's compute capability, such as 9.0."""
    cores: int
    """Streaming multiprocessors."""
    lanes: int
    """Float32 operations of a core at a time."""
    shared_memory: int
    """Bytes of a core; a block may have all but 1024."""
    l2: int
    """Bytes of the L2 cache."""
    clock: float
    """GHz."""


@dataclasses.dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    device_kind: str
    """Regular expression of what jax calls it; the first row that matches counts."""
    flops: tuple[float | None, float | None, float]
    """FLOP/s in bfloat16, tensorfloat32 and float32; None where it has no such product."""
    memory: float
    """Bytes, a gigabyte taken as 1e9 of them: the least that the name can mean."""
    bandwidth: float
    """Bytes of its memory read or written per second."""
    link: float
    """Bytes sent per second to other GPUs of the machine, by NVLink or, where it has none, by PCIe:
    half of the data sheet's figure, which adds both directions."""
    chip: Chip | None = None
    """None where XLA's GPU compiler has not been tried on its figures."""

    def peak(self, product: Product) -> float | None:
        """FLOP/s of dense matrix products of this arithmetic."""
        return self.flops[_COLUMNS.index(product)]


_V100 = (None, None, 15.7e12)
_A100 = (312e12, 156e12, 19.5e12)
_H100 = (989.4e12, 494.7e12, 66.9e12)
_H100_PCIE = (756e12, 378e12, 51e12)
_B200 = (2250e12, 1100e12, 75e12)
_T4 = (None, None, 8.1e12)
_L4 = (121e12, 60e12, 30.3e12)
_RTX4090 = (165.2e12, 82.6e12, 82.6e12)
_A100_40_CHIP = Chip("NVIDIA A100-SXM4-40GB", "8.0", 108, 64, 164 * 1024, 40 * 2**20, 1.41)
_A100_80_CHIP = dataclasses.replace(_A100_40_CHIP, name="NVIDIA A100-SXM4-80GB")
_H100_CHIP = Chip("NVIDIA H100 80GB HBM3", "9.0", 132, 128, 228 * 1024, 50 * 2**20, 1.98)
_H200_CHIP = dataclasses.replace(_H100_CHIP, name="NVIDIA H200")

GPUS: Mapping[str, GPU] = {
    # name: what jax calls it, FLOP/s, bytes of memory, bytes/s of memory, bytes/s of links
    "V100": GPU(r"Tesla V100-SXM.*-16GB", _V100, 16e9, 900e9, 150e9),
    "V100-32GB": GPU(r"Tesla V100-SXM.*", _V100, 32e9, 900e9, 150e9),
    "T4": GPU(r"Tesla T4", _T4, 16e9, 300e9, 16e9),
    "L4": GPU(r"NVIDIA L4", _L4, 24e9, 300e9, 32e9),
    "A100-40GB": GPU(r"NVIDIA A100.*40GB", _A100, 40e9, 1555e9, 300e9, _A100_40_CHIP),
    "A100-80GB": GPU(r"NVIDIA A100.*", _A100, 80e9, 2039e9, 300e9, _A100_80_CHIP),
    "H100": GPU(r"NVIDIA H100 80GB HBM3", _H100, 80e9, 3350e9, 450e9, _H100_CHIP),
    "H100-PCIe": GPU(r"NVIDIA H100 PCIe", _H100_PCIE, 80e9, 2000e9, 64e9),
    "H200": GPU(r"NVIDIA H200", _H100, 141e9, 4800e9, 450e9, _H200_CHIP),
    "B200": GPU(r"NVIDIA B200", _B200, 180e9, 8000e9, 900e9),
    "RTX4090": GPU(r"NVIDIA GeForce RTX 4090", _RTX4090, 24e9, 1008e9, 32e9),
}
"""By the names that `jaxformer plan --gpu` takes."""


def device_peak_flops(device: "jax.Device", product: Product) -> float | None:
    """Peak FLOP/s of a device's dense matrix products, None where no data sheet is known.

    A product that the device's tensor cores do not have, such as bfloat16 on a V100, is None too.
    """
    return peak_flops(device.device_kind, product)


def peak_flops(device_kind: str, product: Product) -> float | None:
    """`device_peak_flops` of a kind of device, by the name that jax or PyTorch has for it."""
    for gpu in GPUS.values():
        if re.fullmatch(gpu.device_kind, device_kind):
            return gpu.peak(product)
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
