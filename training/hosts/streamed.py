"""Weights that ComfyUI brings to the device while they are used: are gradients through them right?

They come by streams and buffers of ComfyUI's own, which depend on card, driver and version, and an error
there gives wrong numbers and no message. So a run does not trust them: it looks, on its own card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..lora import linear_shape
from .borrowed import elsewhere, input_gradient

ROWS = 16
"""Random rows that each Linear is asked with."""
PARTS, PART = 10, 50.0
"""For how long the device is kept busy: kernels, and milliseconds of each. Windows resets a device whose
kernel takes over two seconds."""


def streamed_linears(module: nn.Module, device: torch.device) -> list[nn.Module]:
    """The Linears whose weights are not on `device`, in the model's order."""
    linears = [child for child in module.modules() if linear_shape(child) is not None]
    return [one for one in linears if any(elsewhere(p, device) for p in one.parameters(recurse=False))]


def gradient_error(linears: Sequence[Any], device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative error of what Linears make of random rows, and of their input gradients, against
    the same one at a time and through copies of their weights. 0 for no Linears. The model is `borrowed`.

    One after the other without a pause, forwards and then backwards, as in training, while the device is kept
    from computing: a weight that is overwritten too early, or read before it has come, shows.
    """
    if not linears:
        return 0.0
    generator = torch.Generator().manual_seed(0)

    def random(size: int) -> Tensor:
        return torch.randn(ROWS, size, generator=generator).to(device, dtype)

    inputs = [random(_shape(one)[1]).requires_grad_() for one in linears]
    grads = [random(_shape(one)[0]) for one in linears]
    ticks = _ticks(device)
    with torch.enable_grad():
        _keep_busy(device, ticks)
        # not the modules themselves: hooked adapters would have their say
        outputs = [linear.forward(x) for linear, x in zip(linears, inputs, strict=True)]
    _keep_busy(device, ticks)
    found = torch.autograd.grad(outputs, inputs, grads)
    errors = []
    for linear, x, grad, output, ours in zip(linears, inputs, grads, outputs, found, strict=True):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        with torch.no_grad():
            errors.append(_apart(output, linear.forward(x)))
            errors.append(_apart(ours, input_gradient(linear, grad, buffered=False)))
    return max(errors)


def _ticks(device: torch.device) -> int:
    """Of the device's clock in `PART`; it runs at 2 GHz on one card and at 100 MHz on another."""
    if device.type != "cuda":
        return 0
    some = 10**6
    with torch.cuda.device(device):
        torch.cuda._sleep(1)  # type: ignore[no-untyped-call]  # loads the kernel
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        torch.cuda._sleep(some)  # type: ignore[no-untyped-call]
        end.record()
        end.synchronize()
        took: float = begin.elapsed_time(end)
        return round(some * PART / took)


def _keep_busy(device: torch.device, ticks: int) -> None:
    """Let the device wait, while weights come and nothing is computed with them."""
    if device.type == "cuda":
        for _ in range(PARTS):
            torch.cuda._sleep(ticks)  # type: ignore[no-untyped-call]


def _apart(found: Tensor, truth: Tensor) -> float:
    """Relative to the truth; infinite where one is not finite."""
    difference, size = found.float() - truth.float(), torch.linalg.vector_norm(truth.float())
    return float((torch.linalg.vector_norm(difference) / size.clamp(min=1e-12)).nan_to_num(torch.inf))


def _shape(linear: Any) -> tuple[int, int]:
    shape = linear_shape(linear)
    assert shape is not None
    return shape
