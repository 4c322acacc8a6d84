"""How fast a processor multiplies."""

from __future__ import annotations

import time

import torch


def bfloat16_slowdown(device: torch.device) -> float:
    """Time of a product of matrices in bfloat16 over its time in float32, measured in a fraction of a second.

    Below 1 on a processor with instructions for bfloat16; 33 to 58 on one with AVX2 alone. 0, unmeasured, for
    what is no CPU.
    """
    if device.type != "cpu":
        return 0.0

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(1024, 192, dtype=dtype), torch.ones(192, 192, dtype=dtype)
        x @ weight  # the first one is slower
        begun = time.perf_counter()
        for _ in range(3):
            x @ weight
        return time.perf_counter() - begun

    return seconds(torch.bfloat16) / seconds(torch.float32)
