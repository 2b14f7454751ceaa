from __future__ import annotations

import pytest

from locallab.fit.bandwidth import gpu_bandwidth


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tesla T4", 320),
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA A100 80GB PCIe", 2039),
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA L4", 300),
        ("NVIDIA L40S", 864),
        ("NVIDIA A10G", 600),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", 360),
        ("NVIDIA RTX A6000", 768),
        ("NVIDIA RTX 6000 Ada Generation", 960),
        ("GPU", None),
        ("NVIDIA X4090", None),
    ],
)
def test_the_longest_name_counts(name: str, expected: int | None) -> None:
    assert gpu_bandwidth(name) == (expected and expected * 10**9)
