"""The product of a LoRA, added to what a Linear gave.

One autograd function with the fewest kernels: a training step launches 1700 of these products, and on a fast
GPU the time to launch counts as much as the time to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TOGETHER = 128
"""Tensors that are cast at a time."""
Factors = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r) for all rows, or one for each sample: (B, r, in), (B, out, r)."""


class LowRank(NamedTuple):
    """What `add_low_rank` adds, but for its input."""

    factors: Factors
    scale: float = 1.0
    masters: Factors | None = None


def add_low_rank(
    output: Tensor, x: Tensor, factors: Factors, scale: float = 1.0, masters: Factors | None = None
) -> Tensor:
    """output (..., out) + scale x A^T B^T, written over `output`; x (..., in).

    Nobody else may need the old `output`, which holds for what a Linear returns: it does not keep it for its
    backward.

    Args:
        factors: in the dtype of x. Where each sample has its own, x may hold all samples several times, one
            after the other.
        masters: what the factors were cast from, and what gets their gradients, in its own dtype; by default
            the factors themselves.
    """
    if factors[0].dim() == 3 and len(x) > len(factors[0]):
        down, up = (factor.repeat(len(x) // len(factor), 1, 1) for factor in factors)
        factors = down, up
    if torch.compiler.is_compiling() or output.dtype != x.dtype or not output.is_contiguous():
        down, up = (factor.to(x.dtype) for factor in masters or factors)
        product = _times(_rows(x, down) @ down.mT, scale) @ up.mT
        return output + product.reshape(output.shape).to(output.dtype)
    if not torch.is_grad_enabled():
        _add(output, x, *factors, scale)
        return output
    given = (*(masters or factors), *(factor.detach() for factor in factors))
    added: Tensor = _LowRank.apply(output, x, *given, scale)  # type: ignore[no-untyped-call]
    return added


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        master: Tensor,
        other: Tensor,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        added = output.detach()  # and no view, so that the model may write over it: FLUX does
        low = _add(added, x, down, up, scale)
        _, _, to_down, to_up, *_ = ctx.needs_input_grad  # frozen factors need neither input
        ctx.save_for_backward(x if to_down else None, low if to_up else None, down, up)
        ctx.scale, ctx.dtype = scale, master.dtype
        return added

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, down, up = ctx.saved_tensors
        _, to_x, to_down, to_up, *_ = ctx.needs_input_grad
        rows = _rows(grad, up)
        back = _times(rows @ up, ctx.scale) if to_x or to_down else rows
        return (
            grad,
            (back @ down).view(*grad.shape[:-1], -1) if to_x else None,
            (back.mT @ _rows(x, down)).to(ctx.dtype) if to_down else None,
            (rows.mT @ low).to(ctx.dtype) if to_up else None,
            None,
            None,
            None,
        )


def _add(output: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """In place; returns scale x A^T, by rows."""
    low = _times(_rows(x, down) @ down.mT, scale)
    rows = _rows(output, up)
    product = torch.addmm if up.dim() == 2 else torch.baddbmm
    product(rows, low, up.mT, out=rows)
    return low


def _times(low: Tensor, scale: float) -> Tensor:
    return low if scale == 1 else low * scale


def cast(factors: dict[str, Factors], dtype: torch.dtype) -> dict[str, Factors]:
    """All factors in another dtype, many with a kernel; those that have it already are not copied."""
    made = cast_all([factor for pair in factors.values() for factor in pair], dtype)
    return dict(zip(factors, zip(made[::2], made[1::2], strict=True), strict=True))


@torch.no_grad()
def cast_all(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Tensors of one device in another dtype, many with a kernel; as they are, where they all have it."""
    if all(tensor.dtype == dtype for tensor in tensors):
        return tensors
    made: list[Tensor] = []
    for start in range(0, len(tensors), TOGETHER):
        some = tensors[start : start + TOGETHER]
        flat = torch.cat([tensor.flatten() for tensor in some]).to(dtype)
        parts = torch.split(flat, [tensor.numel() for tensor in some])
        made += [part.view(tensor.shape) for part, tensor in zip(parts, some, strict=True)]
    return made


def _rows(x: Tensor, factor: Tensor) -> Tensor:
    """x (..., n) as a matrix, or as one for each sample where a factor is; contiguous x is not copied."""
    return x.reshape(-1, x.shape[-1]) if factor.dim() == 2 else x.reshape(len(factor), -1, x.shape[-1])
