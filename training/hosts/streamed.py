"""Weights that ComfyUI brings to the device while they are used: are gradients through them right?

They come by streams and buffers of ComfyUI's own, which depend on card, driver and version, and an error
there gives wrong numbers and no message. So a run does not trust them: it looks, on its own card.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..lora import linear_shape
from .borrowed import input_gradient

ROWS = 16
"""Random rows that each Linear is asked with."""


def streamed_linears(module: nn.Module, device: torch.device) -> list[nn.Module]:
    """The Linears whose weights are not on `device`, in the model's order."""
    linears = [child for child in module.modules() if linear_shape(child) is not None]
    return [one for one in linears if any(p.device != device for p in one.parameters(recurse=False))]


def gradient_error(linears: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative error of a Linear's input gradient against that through a copy of its weight.

    One after the other without a pause, forwards and then backwards, as in training: a weight that is
    overwritten too early, or read before it has come, shows. The module must be `borrowed`.

    Returns 0 for no Linears.
    """
    generator = torch.Generator().manual_seed(0)

    def random(size: int) -> Tensor:
        return torch.randn(ROWS, size, generator=generator).to(device, dtype)

    inputs = [random(_shape(one)[1]).requires_grad_() for one in linears]
    grads = [random(_shape(one)[0]) for one in linears]
    with torch.enable_grad():
        outputs = [linear(x) for linear, x in zip(linears, inputs, strict=True)]
    found = torch.autograd.grad(outputs, inputs, grads) if linears else ()
    errors = [0.0]
    for linear, grad, ours in zip(linears, grads, found, strict=True):
        truth = input_gradient(linear, grad, buffered=False).float()
        error = torch.linalg.vector_norm(ours.float() - truth) / torch.linalg.vector_norm(truth)
        errors.append(float(error.nan_to_num(torch.inf)))
    return max(errors)


def _shape(linear: nn.Module) -> tuple[int, int]:
    shape = linear_shape(linear)
    assert shape is not None
    return shape
