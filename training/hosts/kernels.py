"""What lies between the matrix products of a Qwen-Image-Edit block, in three functions.

On an H100 it took a third of a forward. Each function has a backward of its own, which keeps its inputs
alone. Written in plain torch, they run anywhere; on a GPU `torch.compile` makes one or two kernels of each.
Between bfloat16 tensors they compute in float32 and round once, where diffusers rounds after every operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotation = tuple[Tensor, Tensor]
"""cos and sin for each token and feature (L,1,D): feature d becomes x[d] cos[d] + x[d ^ 1] sin[d]."""


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift; x (B,L,D), shift and scale (B,1,D)."""
    if torch.compiler.is_compiling():
        return _modulate(x, shift, scale, eps)
    output: Tensor = _Modulated.apply(x, shift, scale, eps)  # type: ignore[no-untyped-call]
    return output


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """x + gate change; x and change (B,L,D), gate (B,1,D)."""
    if torch.compiler.is_compiling():
        return _gate(x, gate, change)
    output: Tensor = _Gated.apply(x, gate, change)  # type: ignore[no-untyped-call]
    return output


def rotated(
    text: Tensor, image: Tensor, text_norm: Tensor, image_norm: Tensor, rotation: Rotation, eps: float
) -> Tensor:
    """Queries or keys of all tokens (B,T+L,H,D), text first, normalised by the root of their mean square and
    rotated; text (B,T,H,D), image (B,L,H,D), the weights of the norms (D,)."""
    given = text, image, text_norm, image_norm, *rotation, eps
    if torch.compiler.is_compiling():
        return _rotate(*given)
    output: Tensor = _Rotated.apply(*given)  # type: ignore[no-untyped-call]
    return output


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        return _run(_modulate, x, shift, scale, eps)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        own = _run(_modulate_input, grad, x, scale, ctx.eps) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:3]):
            return own, None, None, None
        return own, *_run(_modulate_parameters, grad, x, ctx.eps), None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
        ctx.save_for_backward(gate, change)
        return _run(_gate, x, gate, change)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, change = ctx.saved_tensors
        own = _run(_gate_parameter, grad, change) if ctx.needs_input_grad[1] else None
        return grad, own, _run(_gate_change, grad, gate)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *tensors, ctx.eps = given
        ctx.save_for_backward(*tensors)
        return _run(_rotate, *given)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        text, image = _run(_rotate_back, grad, *ctx.saved_tensors, ctx.eps)
        return text, image, None, None, None, None, None


# -- arithmetic ----------------------------------------------------------------------------------------------


def _run(function: Callable[..., Any], *given: Any) -> Any:
    # detached: the compiler would make another kernel for every choice of who requires gradients
    plain = [one.detach() if isinstance(one, Tensor) else one for one in given]
    return kernel(function, plain[0].device.type == "cuda" and find_spec("triton") is not None)(*plain)


@cache
def kernel(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """The function as it is, or compiled."""
    return Compiled(function) if compiled else function


class Compiled:
    """A function as `torch.compile` makes it; as it is, where that fails: Triton needs a C compiler."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.run = function, torch.compile(function)

    def __call__(self, *given: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            return self.run(*given)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            warnings.warn(f"{self.function.__name__} runs slower, not compiled: {reason}", stacklevel=2)
            self.run = self.function
            return self.function(*given)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm without parameters, and the reciprocal standard deviation."""
    x = _precise(x)
    centred = x - x.mean(-1, keepdim=True)
    reciprocal = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * reciprocal, reciprocal


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    normal, _ = _standardised(x, eps)
    return (normal * (1 + _precise(scale)) + shift).to(x.dtype)


def _modulate_input(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> Tensor:
    normal, reciprocal = _standardised(x, eps)
    own = _precise(grad) * (1 + _precise(scale))
    along = (own * normal).mean(-1, keepdim=True)
    return (reciprocal * (own - own.mean(-1, keepdim=True) - normal * along)).to(x.dtype)


def _modulate_parameters(grad: Tensor, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normal, _ = _standardised(x, eps)
    own = _precise(grad)
    return own.sum(1, keepdim=True).to(x.dtype), (own * normal).sum(1, keepdim=True).to(x.dtype)


def _gate(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    return (x + _precise(gate) * change).to(x.dtype)


def _gate_change(grad: Tensor, gate: Tensor) -> Tensor:
    return grad * gate


def _gate_parameter(grad: Tensor, change: Tensor) -> Tensor:
    return (_precise(grad) * change).sum(1, keepdim=True).to(grad.dtype)


def _swapped(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of mean square 1, and the reciprocal root of what it was."""
    x = _precise(x)
    reciprocal = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * reciprocal, reciprocal


def _rotate(
    text: Tensor, image: Tensor, first: Tensor, second: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> Tensor:
    length = text.shape[1]

    def one(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normal = _unit(x, eps)[0] * weight
        return (normal * cos + _swapped(normal) * sin).to(x.dtype)

    return torch.cat(
        [one(text, first, cos[:length], sin[:length]), one(image, second, cos[length:], sin[length:])], 1
    )


def _rotate_back(
    grad: Tensor,
    text: Tensor,
    image: Tensor,
    first: Tensor,
    second: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    length = text.shape[1]

    def one(grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        unit, reciprocal = _unit(x, eps)
        grad = _precise(grad)
        own = (grad * cos - _swapped(grad) * sin) * weight  # the inverse rotation is the transposed one
        return (reciprocal * (own - unit * (own * unit).mean(-1, keepdim=True))).to(x.dtype)

    return (
        one(grad[:, :length], text, first, cos[:length], sin[:length]),
        one(grad[:, length:], image, second, cos[length:], sin[length:]),
    )
