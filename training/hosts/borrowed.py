"""Gradients through a model that somebody else owns: nothing is copied, and nothing stays changed.

ComfyUI's weights are inference tensors, may be quantised or patched, and belong to its memory management.
Autograd refuses to save the first kind and must not keep the others: of a model that is on the device in part
they lie in buffers which the next layer overwrites. So while a model is lent, every module that owns weights
gets a `forward` of its own in its instance dictionary: it computes what it always did, and fetches them
anew for the backward. On leaving, the dictionaries are as they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy import ops
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..lora import linear_shape

Forward = Callable[..., Any]

_ABSENT = object()


@contextmanager
def borrowed(module: nn.Module, device: torch.device, checkpointing: bool = False) -> Iterator[None]:
    """Let gradients pass through `module` to its inputs (and to adapters hooked into it).

    Args:
        device: where it computes, wherever its weights are.
        checkpointing: keep only what goes into each block of the module's lists, and compute the rest again.
    """
    found: list[tuple[nn.Module, Any]] = []
    copies: dict[nn.Parameter, nn.Parameter] = {}

    def alias(parameter: nn.Parameter) -> nn.Parameter:
        if not elsewhere(parameter, device):
            return _alias(parameter)
        if parameter not in copies:  # a norm's weight in host memory
            copies[parameter] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
        return copies[parameter]

    def replace(child: nn.Module, forward: Forward) -> None:
        found.append((child, child.__dict__.get("forward", _ABSENT)))
        child.__dict__["forward"] = forward

    try:
        for child in module.modules():
            if isinstance(child, nn.LayerNorm):
                replace(child, _on_a_copy(child.forward))
            if any(p is not None for p in child._parameters.values()):
                if linear_shape(child) is not None:
                    replace(child, _linear(child, child.forward))
                else:
                    replace(child, _aliased(child, child.forward, alias))
        if checkpointing:
            for blocks in module.children():
                for block in blocks if isinstance(blocks, nn.ModuleList) else ():
                    replace(block, _checkpointed(block.forward))
        yield
    finally:
        for child, forward in reversed(found):
            if forward is _ABSENT:
                del child.__dict__["forward"]
            else:
                child.__dict__["forward"] = forward


def _linear(module: nn.Module, forward: Forward) -> Forward:
    return lambda x: _BorrowedLinear.apply(x, module, forward)  # type: ignore[no-untyped-call]


class _BorrowedLinear(torch.autograd.Function):
    """y = W x + b with a gradient for x alone; W is fetched again for it, dequantised if need be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, forward: Forward) -> Any:
        ctx.module = module
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return input_gradient(ctx.module, grad), None, None


def input_gradient(module: Any, grad: Tensor, buffered: bool = True) -> Tensor:
    """(..., out) -> (..., in): the gradient of a Linear's input from that of its output.

    Args:
        buffered: a weight that is not on the device may come by way of ComfyUI's buffers and streams, as in a
            forward; else it is copied at once, which is slow.
    """
    weight: Tensor
    if not isinstance(module, ops.CastWeightBiasOp):
        weight = module.weight.to(grad)
        return grad @ weight
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF's layers unpack their weights themselves
        weight = module.cast_bias_weight(grad)[0]
        return grad @ weight
    if buffered:
        weight, bias, stream = ops.cast_bias_weight(module, grad, offloadable=True)
    else:
        (weight, bias), stream = ops.cast_bias_weight(module, grad), None
    try:
        plain = weight.dequantize() if isinstance(weight, ops.QuantizedTensor) else weight
        grad = grad @ plain.to(grad.dtype)
        smoothing = getattr(module, "pre_quant_scale", None)  # what such a Linear multiplies x with first
        return grad if smoothing is None else grad * smoothing.to(grad)
    finally:
        ops.uncast_bias_weight(module, weight, bias, stream)


def _aliased(module: nn.Module, forward: Forward, alias: Callable[[nn.Parameter], nn.Parameter]) -> Forward:
    """Norms and the like: autograd saves their weights, so they see ordinary tensors on the same storage."""

    def call(*args: Any, **kwargs: Any) -> Any:
        own = dict(module._parameters)
        module._parameters.update({name: None if p is None else alias(p) for name, p in own.items()})
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(own)

    return call


def elsewhere(tensor: Tensor, device: torch.device) -> bool:
    """Whether it is not on the device; one without a number is the first of its kind."""
    return (tensor.device.type, tensor.device.index or 0) != (device.type, device.index or 0)


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    if not parameter.is_inference():
        return parameter
    tensor = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    tensor.set_(parameter.untyped_storage(), parameter.storage_offset(), parameter.size(), parameter.stride())
    return nn.Parameter(tensor, requires_grad=False)


def _on_a_copy(forward: Forward) -> Forward:
    """FLUX adds to its residual stream in place, after a norm that keeps its input for the backward."""
    return lambda x: forward(x.clone() if torch.is_grad_enabled() else x)


def _checkpointed(forward: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        # the block may write into what it is given, and that is what it will be computed from again
        own = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        return forward(*own, **{k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()})

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # nothing here draws random numbers, and the global generator is ComfyUI's
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call
