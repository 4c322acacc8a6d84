"""What a run will hold on the device, before it starts, and what it has held."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from .config import Distillation
from .lora import Shapes

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device by what holds them, beside activations; and the bytes there are."""

    parts: dict[str, int]
    room: int

    @property
    def fits(self) -> bool:
        """Whether all of it is there at once."""
        return sum(self.parts.values()) <= self.room

    def __str__(self) -> str:
        lines = [f"{name:<28}{size / GIB:8.2f} GiB" for name, size in self.parts.items()]
        total = sum(self.parts.values()) / GIB
        lines.append(f"{'together, and activations':<28}{total:8.2f} GiB of {self.room / GIB:.2f}")
        if not self.fits:
            lines.append(ADVICE)
        return "\n".join(lines)


ADVICE = (
    "This does not fit. In this order: load the base in fp8; set optimizer = adamw8bit; lower rank; set "
    "micro_batch = 1; lower long_side."
)


def memory_plan(base: int, room: int, targets: Shapes, teacher: int, config: Distillation) -> MemoryPlan:
    """For a base of `base` bytes on a device with `room` bytes, its own included.

    Args:
        targets: module path -> (out, in) of the Linears that student and fake score adapt.
        teacher: bytes of the largest teacher's file.
    """
    numbers = sum(config.rank * (wide + narrow) for wide, narrow in targets.values())
    moments = 2 if config.optimizer == "adamw8bit" else 8
    adapters = 2 * numbers * (4 + 4 + moments)
    return MemoryPlan(
        {
            "base": base,
            "student and fake score": adapters,
            # the ones in use and the next ones on their way, in float32: twice what a bfloat16 file has
            "teachers": 2 * 2 * config.micro_batch * teacher,
        },
        room,
    )


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
