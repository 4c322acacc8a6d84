"""What a process holds on the device, and has held."""

from __future__ import annotations

import sys

import torch


def allocated_memory(device: torch.device) -> int:
    """Bytes of tensors on a device whose module of torch tells (CUDA, ROCm, XPU); 0 on others."""
    told = getattr(getattr(torch, device.type, None), "memory_allocated", None)
    return int(told(device)) if told else 0


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak allocation where torch tells it, else the process' peak resident size (0: unknown)."""
    if told := getattr(getattr(torch, device.type, None), "max_memory_allocated", None):
        return int(told(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
