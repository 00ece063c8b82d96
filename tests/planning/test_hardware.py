"""Peaks of devices and the share of them that is used."""

import types

import jax
import pytest

from jaxformer.planning.hardware import device_peak_flops, mfu


def device(kind: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "product", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA A100 80GB PCIe", "tensorfloat32", 156e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "float32", 66.9e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "tensorfloat32", 494.7e12),
        ("NVIDIA B200", "bfloat16", 2250e12),
        ("Tesla V100-SXM2-16GB", "float32", 15.7e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("Tesla T4", "float32", 8.1e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", None),
        ("NVIDIA H100 NVL", "bfloat16", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind, product, peak):
    assert device_peak_flops(device(kind), product) == peak


def test_the_peak_of_a_cpu_is_not_made_up():
    assert device_peak_flops(jax.devices("cpu")[0], "float32") is None
    assert mfu(1e9, 0.1, jax.devices("cpu"), "float32") is None


def test_mfu_is_the_share_of_all_devices_together():
    a100 = device("NVIDIA A100-SXM4-80GB")
    assert mfu(312e12, 1.0, [a100], "bfloat16") == 1.0
    assert mfu(312e12, 2.0, [a100, a100], "bfloat16") == 0.25
    assert mfu(312e12, 1.0, [a100, device("cpu")], "bfloat16") is None
    assert mfu(1.0, 1.0, [], "bfloat16") is None
