"""Blocks of Qwen-Image-Edit that read and write memory less: on an H100 a third of a forward was spent
between its matrix products.

What lies between them is three functions here, each with a backward of its own, which keeps its inputs alone.
Written in plain torch, they run anywhere; on a GPU `torch.compile` makes one or two kernels of each. Between
bfloat16 tensors they compute in float32 and round once, where diffusers rounds after every operation.

The Linears stay calls of the modules: hooks, offload, packed weights and checkpointing do not notice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..frozen import blocks_of
from ..run_config import CHECKPOINTING

Rotation = tuple[Tensor, Tensor]
"""cos and sin for each token and feature (L,1,D): feature d becomes x[d] cos[d] + x[d ^ 1] sin[d]."""


def fuse(transformer: Any, checkpointing: str = "none") -> None:
    """Replace the forwards of a frozen transformer's blocks, as attributes of those modules; and again for
    another policy.

    Args:
        checkpointing: what a forward with gradient keeps of each block. With "none" of it nothing is computed
            again in the backward, with "selective" what comes before and after attention, with "full" all.

    Raises:
        ValueError: another policy.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"checkpointing = {checkpointing!r}; valid are {', '.join(CHECKPOINTING)}")
    blocks = blocks_of(transformer)
    if not any(isinstance(block.forward, FusedBlock) for block in blocks):
        transformer.pos_embed.register_forward_hook(_rotation)
    for block in blocks:
        block.forward = FusedBlock(block, checkpointing)


class FusedBlock:
    """Stands in for a block's `forward`."""

    def __init__(self, block: Any, checkpointing: str) -> None:
        self.block, self.checkpointing = block, checkpointing

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: None,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: object = None,
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B,L,D), text (B,T,D) and time -> text, image.

        The time is (B,D); where tokens are modulated by their index it is (2B,D), for the result's tokens,
        the first half of the image's, and for the source's.
        """
        given = hidden_states, encoder_hidden_states, temb
        if self.checkpointing == "full":
            both: tuple[Tensor, Tensor] = self._again(self._whole, *given, image_rotary_emb)
            return both
        return self._whole(*given, image_rotary_emb)

    def _whole(self, image: Tensor, text: Tensor, time: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        run = self._again if self.checkpointing == "selective" else self._once
        *qkv, mods, text_mods = run(self._before, image, text, time, rotation)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        after: tuple[Tensor, Tensor] = run(self._after, image, text, mixed, mods, text_mods)
        return after

    @staticmethod
    def _once(part: Callable[..., Any], *given: Any) -> Any:
        return part(*given)

    @staticmethod
    def _again(part: Callable[..., Any], *given: Any) -> Any:
        if not torch.is_grad_enabled():
            return part(*given)
        # nothing in a block draws random numbers, and to keep the generators' states takes time
        return checkpoint(part, *given, use_reentrant=False, preserve_rng_state=False)

    def _before(self, image: Tensor, text: Tensor, time: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
        """Query, key, value (B,H,T+L,D) and the modulations of image and text (B or 2B,6,1,D)."""
        block, attn, eps = self.block, self.block.attn, self.block.img_norm1.eps
        mods = block.img_mod(time).unflatten(1, (6, 1, -1))
        text_mods = block.txt_mod(time[: len(text)]).unflatten(1, (6, 1, -1))
        shift, scale, *_ = text_mods.unbind(1)
        there = modulated(text, shift, scale, eps)
        shift, scale, *_ = mods.unbind(1)
        here = by_part(modulated, image, shift, scale, eps)

        def heads(linear: nn.Module, x: Tensor) -> Tensor:
            split: Tensor = linear(x).unflatten(-1, (attn.heads, x.shape[-1] // attn.heads))
            return split

        query, key = (
            rotated(heads(added, there), heads(own, here), text_norm, image_norm, rotation)
            for added, own, text_norm, image_norm in (
                (attn.add_q_proj, attn.to_q, attn.norm_added_q, attn.norm_q),
                (attn.add_k_proj, attn.to_k, attn.norm_added_k, attn.norm_k),
            )
        )
        value = torch.cat([heads(attn.add_v_proj, there), heads(attn.to_v, here)], 1)
        return *(x.transpose(1, 2) for x in (query, key, value)), mods, text_mods

    def _after(
        self, image: Tensor, text: Tensor, mixed: Tensor, mods: Tensor, text_mods: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text and image, given what attention made of both (B,T+L,D)."""
        block, attn, eps, length = self.block, self.block.attn, self.block.img_norm2.eps, text.shape[1]
        _, _, gate, shift, scale, gate2 = mods.unbind(1)
        image = by_part(gated, image, gate, attn.to_out[0](mixed[:, length:].contiguous()))
        image = by_part(gated, image, gate2, block.img_mlp(by_part(modulated, image, shift, scale, eps)))
        _, _, gate, shift, scale, gate2 = text_mods.unbind(1)
        text = gated(text, gate, attn.to_add_out(mixed[:, :length].contiguous()))
        text = gated(text, gate2, block.txt_mlp(modulated(text, shift, scale, eps)))
        return text, image


def by_part(function: Callable[..., Tensor], x: Tensor, *given: Any) -> Tensor:
    """`function` of x (B,L,D) with modulations (B,1,D); or with those of two parts of its tokens (2B,1,D),
    each of which has half of them."""
    first, *_ = given
    if len(first) == len(x):
        return function(x, *given)

    def half(value: Any, second: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.chunk(2, 0 if value.shape[1] == 1 else 1)[second]

    return torch.cat([function(half(x, i).contiguous(), *(half(one, i) for one in given)) for i in (0, 1)], 1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift; x (B,L,D), shift and scale (B,1,D)."""
    output: Tensor = _Modulated.apply(x, shift, scale, eps)  # type: ignore[no-untyped-call]
    return output


def gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """x + gate change; x and change (B,L,D), gate (B,1,D)."""
    output: Tensor = _Gated.apply(x, gate, change)  # type: ignore[no-untyped-call]
    return output


def rotated(text: Tensor, image: Tensor, text_norm: Any, image_norm: Any, rotation: Rotation) -> Tensor:
    """Queries or keys of all tokens (B,T+L,H,D), text first, normalised by the root of their mean square and
    rotated; text (B,T,H,D), image (B,L,H,D)."""
    norms = text_norm.weight, image_norm.weight
    output: Tensor = _Rotated.apply(text, image, *norms, *rotation, image_norm.eps)  # type: ignore[no-untyped-call]
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
    return _kernel(function, plain[0].device.type == "cuda")(*plain)


@cache
def _kernel(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return _Compiled(function) if compiled and find_spec("triton") else function


class _Compiled:
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


def _rotation(_: nn.Module, __: object, tables: tuple[Tensor, Tensor]) -> Rotation:
    """The model's complex tables (L, D/2) of image and text, as one for all tokens, text first."""
    turn = torch.cat([tables[1], tables[0]])[:, None]
    sin = torch.stack([-turn.imag, turn.imag], -1).flatten(-2)
    return turn.real.repeat_interleave(2, -1), sin


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
