"""How fast memories are read: those of GPUs by their names, of this machine's RAM as measured. Pure."""

from __future__ import annotations

import re

GPUS = {
    "A10": 600,
    "A10G": 600,
    "A100": 1555,
    "A100 80GB": 2039,
    "A100-SXM4-80GB": 2039,
    "A30": 933,
    "A4000": 448,
    "A40": 696,
    "A5000": 768,
    "A6000": 768,
    "B200": 8000,
    "GB10": 273,
    "GH200": 4000,
    "GTX 1060": 192,
    "GTX 1070": 256,
    "GTX 1080": 320,
    "GTX 1080 Ti": 484,
    "GTX 1650": 128,
    "GTX 1660": 192,
    "H100": 3350,
    "H100 NVL": 3900,
    "H100 PCIe": 2000,
    "H200": 4800,
    "L4": 300,
    "L40": 864,
    "L40S": 864,
    "Orin": 204,
    "P100": 732,
    "P40": 347,
    "RTX 2060": 336,
    "RTX 2070": 448,
    "RTX 2080": 448,
    "RTX 2080 Ti": 616,
    "RTX 3050": 224,
    "RTX 3060": 360,
    "RTX 3060 Ti": 448,
    "RTX 3070": 448,
    "RTX 3070 Ti": 608,
    "RTX 3080": 760,
    "RTX 3080 Ti": 912,
    "RTX 3090": 936,
    "RTX 3090 Ti": 1008,
    "RTX 4060": 272,
    "RTX 4060 Ti": 288,
    "RTX 4070": 504,
    "RTX 4070 SUPER": 504,
    "RTX 4070 Ti": 504,
    "RTX 4070 Ti SUPER": 672,
    "RTX 4080": 717,
    "RTX 4080 SUPER": 736,
    "RTX 4090": 1008,
    "RTX 5060": 448,
    "RTX 5060 Ti": 448,
    "RTX 5070": 672,
    "RTX 5070 Ti": 896,
    "RTX 5080": 960,
    "RTX 5090": 1792,
    "RTX 6000 Ada": 960,
    "RTX A2000": 288,
    "RTX PRO 6000": 1792,
    "T4": 320,
    "V100": 900,
}
"""Bandwidths that the makers state, in units of 10^9 bytes per second. The longest name within a GPU's name counts."""

OTHER_GPU = 300 * 10**9
"""Bytes per second of a GPU that is not in the table."""

USUAL_RAM = 40 * 10**9
"""Bytes per second of RAM that has not been measured: two channels of DDR4-3200 less what cannot be reached."""

THREAD = 6 * 10**9
"""Bytes of weights per second that a CPU thread computes with (measured: 5.3 GB of Q4_1 on an AMD EPYC). With few threads
this is the limit, not the memory."""

REACHED = 0.7
"""Share of the stated bandwidth that reading weights on a GPU reaches."""


def gpu_bandwidth(name: str) -> int | None:
    """Return the stated bytes per second of a GPU, None if it is not known."""
    found = [each for each in GPUS if re.search(rf"\b{re.escape(each)}\b", name, re.IGNORECASE)]
    return GPUS[max(found, key=len)] * 10**9 if found else None
