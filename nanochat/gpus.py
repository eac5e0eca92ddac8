"""What a GPU can do, holds and costs: facts that no program can find out by itself.

In: the name of a device, or a machine as the report describes it. Out: its row of the table; dollars an hour.
"""

from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    name: str
    """its words stand in the name that CUDA has for the device"""
    flops: float
    """a second, dense, in bf16, as the maker publishes"""
    gib: int
    """of memory"""
    price: float | None
    """dollars an hour, to rent it; None: unknown"""


GPUS = (  # the more specific name first
    Gpu("GB200", 2500e12, 186, 7),
    Gpu("B200", 2250e12, 180, 5),
    Gpu("H200", 989e12, 141, 3.5),
    Gpu("H100 NVL", 835e12, 94, 3),
    Gpu("H100 PCIe", 756e12, 80, 3),
    Gpu("H100", 989e12, 80, 3),
    Gpu("A100 40GB", 312e12, 40, 1.8),
    Gpu("A100", 312e12, 80, 1.8),
    Gpu("L40S", 362e12, 48, 0.9),
    Gpu("L40", 181e12, 48, 0.7),
    Gpu("L4", 121e12, 24, 0.7),
    Gpu("A10G", 70e12, 24, 1),
    Gpu("T4", 65e12, 16, 0.35),
    Gpu("RTX 5090", 209.5e12, 32, 0.7),
    Gpu("RTX 4090", 165.2e12, 24, 0.4),
    Gpu("RTX 4080", 97.5e12, 16, None),
    Gpu("RTX 4070", 58.3e12, 12, None),
    Gpu("RTX 3090", 71e12, 24, 0.25),
    Gpu("RTX 3060", 25.5e12, 12, None),
)
CORE_PRICE = 0.05  # dollars an hour, for a core of a CPU


def gpu_called(device_name: str) -> Gpu | None:
    """ "NVIDIA A100-SXM4-40GB" -> the row "A100 40GB"; None if there is none."""
    return next((gpu for gpu in GPUS if all(word in device_name for word in gpu.name.split())), None)


def peak_flops(device: torch.device) -> float | None:
    """Published dense bf16 FLOP/s of the device; None if it is not in the table (then no MFU is reported)."""
    gpu = gpu_called(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu and gpu.flops


def price_an_hour(machine: dict) -> tuple[float, str] | None:
    """Dollars an hour of a machine (`common.describe_machine`) and what they are based on; None if it is not known."""
    device, figures = str(machine.get("device", "")), {k: v for k, v in machine.items() if not isinstance(v, str)}
    if (gpu := gpu_called(device)) and gpu.price:
        count = int(figures.get("ranks") or figures.get("gpus") or 1)
        return gpu.price * count, f"${gpu.price:.2f} an hour for each of {count} {gpu.name}"
    if device == "cpu" and (cores := figures.get("cores")):
        return CORE_PRICE * cores, f"${CORE_PRICE:.2f} an hour for each of {cores:,.0f} CPU cores"
    return None
