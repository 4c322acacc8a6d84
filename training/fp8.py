"""A frozen base in 8 bits: float8 e4m3 weights with a scale, unpacked where they are used."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from .frozen import SCALE, FrozenForward, blocks_of, frozen_linears

AS_LOADED: Final = "bf16"
PACKED: Final = "fp8"
"""How a base's weights may be kept."""
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> float8 values (out, in) and float32 scales (out, 1): weight ~ values * scale.

    A weight is wrong by at most 1/16 of itself, or by scale / 1024 where it is smaller than scale / 64.
    Scales are powers of two: these lose no precision of a floating-point format, and unpacking is then exact
    in bfloat16 as in float32.
    """
    largest = weight.abs().amax(1, keepdim=True).float()
    exponent = torch.frexp(largest / LARGEST).exponent  # largest / LARGEST < 2 ** exponent
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    return (weight.float() / scale).to(FP8), scale


def quantize_base(module: nn.Module, device: torch.device | str | None = None) -> None:
    """Pack the weights of all Linears in the module's blocks into 8 bits, one at a time, for good.

    Biases, norms and what lies outside the blocks (0.2% of Qwen-Image-Edit) stay as they are. The module's
    float weights are dropped: undoing this is loading it again. Do not call ``module.to(dtype)`` afterwards,
    which would cast the packed weights too; ``module.to(device)`` is fine.

    Args:
        device: where to do the arithmetic; by default where each weight is.

    Raises:
        ValueError: no blocks, weights that are trained, or packed already.
    """
    blocks = blocks_of(module)
    if not any(frozen_linears(block) for block in blocks):
        raise ValueError(f"{type(module).__name__} has no blocks with Linears to quantise")
    for block in blocks:
        quantize_block(block, device)


@torch.no_grad()
def quantize_block(block: nn.Module, device: torch.device | str | None = None) -> None:
    """What `quantize_base` does, for one block."""
    for linear in frozen_linears(block):
        if hasattr(linear, SCALE) or not linear.weight.is_floating_point() or linear.weight.dtype == FP8:
            raise ValueError(f"a weight of {type(block).__name__} is quantised already")
        home = linear.weight.device
        values, scale = quantize(linear.weight.to(device or home))
        linear.weight.data = values.to(home)
        linear.register_buffer(SCALE, scale.to(home), persistent=False)
        linear.forward = FrozenForward(linear, partial(getattr, linear, "weight"))  # type: ignore[method-assign]
