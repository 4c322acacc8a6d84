"""What a process holds on the device, and has held."""

from __future__ import annotations

import sys

import torch


def allocated_memory(device: torch.device) -> int:
    """Bytes of tensors on a CUDA device; 0 on others."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak allocation on a CUDA device, else the process' peak resident size (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
