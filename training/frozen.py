"""Frozen Linears that save no weight for the backward, but ask for it again.

torch's own Linear keeps its weight in the graph: a weight that was unpacked or brought to the device for the
forward would stay there until the backward, one for every Linear of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCALE = "weight_scale"
"""Name of the buffer that a quantised Linear's weight is multiplied with, (out,1) or a scalar."""


class FrozenForward:
    """Stands in for a Linear's `forward`, as an attribute of that one module.

    Hooks run around it as around the class's own forward, and `del linear.forward` brings that one back.

    Args:
        held: gives the weight as it is stored, on the input's device, whenever it is needed.
    """

    def __init__(self, linear: nn.Linear, held: Callable[[], Tensor]) -> None:
        self.linear, self.held = linear, held

    def __call__(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), with a gradient for the input alone."""
        weight = self.weight(input.dtype)
        output: Tensor = _FrozenLinear.apply(input, weight, self.linear.bias, self.weight)  # type: ignore[no-untyped-call]
        return output

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) to compute with."""
        return unpacked(self.held(), getattr(self.linear, SCALE, None), dtype)


def unpacked(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A stored weight (out, in) to compute with; scale (out,1) or a scalar, None where it has none."""
    weight = weight.to(dtype)
    return weight if scale is None else weight * scale.to(dtype)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, again: Callable[[torch.dtype], Tensor]
    ) -> Tensor:
        ctx.again = again
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad @ ctx.again(grad.dtype), None, None, None


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """A transformer's blocks in the order in which they run: the entries of the module's own ModuleLists."""
    return [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]


def frozen_linears(module: nn.Module) -> list[nn.Linear]:
    """Every Linear inside.

    Raises:
        ValueError: one whose weight is trained: it would get no gradient.
    """
    found = {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}
    for name, linear in found.items():
        if linear.weight.requires_grad:
            raise ValueError(f"the weight of {name} is trained: freeze the base with requires_grad_(False)")
    return list(found.values())
