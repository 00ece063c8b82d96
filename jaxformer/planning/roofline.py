"""A prediction of how long a planned step takes on a GPU: a roofline, not a measurement.

    step = max(compute, traffic) + collectives
    compute     = FLOPs of a device / (PRODUCT_SHARE of the GPU's peak for the products' type)
    traffic     = bytes of memory read and written / (TRAFFIC_SHARE of its bandwidth)
    collectives = bytes sent / (TRAFFIC_SHARE of the bandwidth of its link)

(Williams, Waterman & Patterson 2009, "Roofline"). It assumes that all devices are in one machine,
on the links of the table of GPUs or of `--link`; that sending does not overlap with computing; that
collectives go around a ring; and that matrix products are large enough to reach their share of the
peak. Large products come out too slow, small ones too fast. It serves to compare meshes and batches
and shows which of the three terms dominates; the time itself has to be measured.

The bytes are those of XLA's CPU compiler, an upper bound. It fuses less than a GPU's and so
moves more. It also sends more: copies sum all gradients in each accumulation slice, where a GPU's
compiler sums those of the blocks once; `fsdp` sums whole gradients, where it sums each device's
part (half of it); `tensor` sums the gradients of queries, keys and values one by one, where it adds
them first (a third), and bfloat16 as float32, where it sums half of the activations as they are.
"""

import dataclasses

from jaxformer.errors import UserError
from jaxformer.planning.hardware import GPU, Product
from jaxformer.planning.plan import Plan

PRODUCT_SHARE = 0.6
"""Fraction of its peak that a GPU reaches in large matrix products."""
TRAFFIC_SHARE = 0.8
"""Fraction of its bandwidth that memory, or a link, reaches."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step and their parts."""

    product: Product
    """The arithmetic of the matrix products."""
    peak: float
    """FLOP/s of one GPU for it."""
    compute: float
    traffic: float
    collectives: float
    mfu: float
    """Fraction of the peaks of all GPUs that the model's FLOPs take."""

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return max(self.compute, self.traffic) + self.collectives


def predict(plan: Plan, gpu: GPU) -> Prediction:
    """How long the planned step takes on such GPUs.

    Raises:
        UserError: for float64, of whose products the table has no peak.
    """
    product, peak = product_on(gpu, plan.config.model.dtype)
    flops = max(plan.model_flops, plan.compiled_flops)
    sent = sum(total.sent for total in plan.collectives.values())
    prediction = Prediction(
        product=product,
        peak=peak,
        compute=flops / (PRODUCT_SHARE * peak),
        traffic=plan.traffic / (TRAFFIC_SHARE * gpu.bandwidth),
        collectives=sent / (TRAFFIC_SHARE * gpu.link),
        mfu=0.0,
    )
    return dataclasses.replace(prediction, mfu=plan.model_flops / (prediction.step * peak))


def product_on(gpu: GPU, dtype: str) -> tuple[Product, float]:
    """The arithmetic in which a GPU multiplies arrays of this type, and its peak.

    bfloat16, and float32 as tensorfloat32, where it has them, else float32.
    """
    if dtype == "float64":
        raise UserError(
            "no peak of float64 products is known: plan with --model.dtype float32 or bfloat16"
        )
    wanted: Product = "bfloat16" if dtype == "bfloat16" else "tensorfloat32"
    for product in (wanted, "float32"):
        if peak := gpu.peak(product):
            return product, peak
    raise AssertionError("every GPU of the table has float32")
