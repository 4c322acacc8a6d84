"""Blocks of Qwen-Image-Edit that read and write memory less than diffusers' own.

A block is two functions, `before` attention and `after` it, of its Linears and of :mod:`.kernels`. The
Linears are the modules themselves, so that hooks, offload, packed weights and checkpointing do not notice; or
their tensors, for each of the two functions to be compiled as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..frozen import blocks_of
from ..run_config import CHECKPOINTING
from .kernels import Rotation, gated, kernel, modulated, rotated
from .plain_linear import plain_linears
from .ragged import joined, one_by_one

Linears = Mapping[str, Callable[[Tensor], Any]]
"""By their path in a block."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
AFTER = ("attn.to_out", "attn.to_add_out", "img_mlp", "txt_mlp")
"""What the paths of those Linears begin with that come after attention."""
VARIANTS = 64
"""Of a compiled function: by what is adapted, of what a gradient is asked, and which lengths have varied."""


def fuse(
    transformer: Any,
    checkpointing: str = "none",
    compiled: bool = False,
    attend: Attend = F.scaled_dot_product_attention,
) -> None:
    """Replace the forwards of a frozen transformer's blocks, as attributes of those modules; and again for
    another policy.

    Args:
        checkpointing: what a forward with gradient keeps of each block. With "none" of it nothing is computed
            again in the backward, with "selective" what comes before and after attention, with "full" all.
        compiled: let `torch.compile` make one function of all that comes before attention, adapters
            included, and one of what comes after. Blocks that are offloaded are left as they are.
        attend: attention, of query, key and value (B,H,N,D).

    Raises:
        ValueError: another policy.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"checkpointing = {checkpointing!r}; valid are {', '.join(CHECKPOINTING)}")
    blocks = blocks_of(transformer)
    if not any(isinstance(block.forward, FusedBlock) for block in blocks):
        transformer.pos_embed.register_forward_hook(_rotation)
    if compiled:
        config = torch._dynamo.config
        # the second name is that of older torch
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, limit, max(getattr(config, limit), VARIANTS))
    for block in blocks:
        block.forward = FusedBlock(block, checkpointing, compiled, attend)


class FusedBlock:
    """Stands in for a block's `forward`."""

    def __init__(self, block: Any, checkpointing: str, compiled: bool, attend: Attend) -> None:
        self.checkpointing, self.compiled, self.attend = checkpointing, compiled, attend
        linears = {path: one for path, one in block.named_modules() if isinstance(one, nn.Linear)}
        late = {path: one for path, one in linears.items() if path.startswith(AFTER)}
        self.linears = {after: late, before: {path: one for path, one in linears.items() if path not in late}}
        attn = block.attn
        self.norms = attn.norm_q, attn.norm_k, attn.norm_added_q, attn.norm_added_k
        self.sizes = Sizes(attn.heads, block.img_norm1.eps, attn.norm_q.eps)

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: None,
        temb: Tensor,
        image_rotary_emb: Rotation,
        joint_attention_kwargs: Mapping[str, Sequence[int]] | None = None,
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B,L,D), text (B,T,D) and time -> text, image.

        The time is (B,D); where tokens are modulated by their index it is (2B,D), for the result's tokens,
        the first half of the image's, and for the source's. A text that is padded has its "lengths" among
        `joint_attention_kwargs`.
        """
        lengths = (joint_attention_kwargs or {}).get("lengths")
        given = hidden_states, encoder_hidden_states, temb, image_rotary_emb, lengths
        if self.checkpointing == "full":
            both: tuple[Tensor, Tensor] = self._again(self._whole, *given)
            return both
        return self._whole(*given)

    def _whole(
        self, image: Tensor, text: Tensor, time: Tensor, rotation: Rotation, lengths: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        run = self._again if self.checkpointing == "selective" else self._once
        *qkv, mods, text_mods = run(self._before, image, text, time, rotation)
        mixed = [self.attend(*qkv)] if lengths is None else one_by_one(self.attend, qkv, lengths)
        del qkv  # one by one, autograd keeps parts of it
        after: tuple[Tensor, Tensor] = run(self._after, image, text, mixed, lengths, mods, text_mods)
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
        norms = tuple(norm.weight for norm in self.norms)
        return self._run(before, image, text, time, rotation, norms)

    def _after(
        self,
        image: Tensor,
        text: Tensor,
        outputs: list[Tensor],
        lengths: Sequence[int] | None,
        mods: Tensor,
        text_mods: Tensor,
    ) -> tuple[Tensor, ...]:
        # joined only here: what is checkpointed keeps what it is given
        mixed = outputs[0] if lengths is None else joined(outputs, lengths, tokens=2)
        if not torch.is_grad_enabled():
            outputs.clear()
        return self._run(after, image, text, mixed.transpose(1, 2).flatten(2), mods, text_mods)

    def _run(self, part: Callable[..., Any], image: Tensor, *given: Any) -> tuple[Tensor, ...]:
        linears = self.linears[part]
        plain = plain_linears(linears, image) if self.compiled else None
        if plain is None:
            result: tuple[Tensor, ...] = part(linears, self.sizes, image, *given)
        else:
            result = kernel(part, compiled=True)(plain, self.sizes, image, *given)
        return result


class Sizes(NamedTuple):
    """What is the same in all blocks."""

    heads: int
    eps: float
    """Of the norms that are modulated."""
    eps_qk: float


def before(
    linears: Linears,
    sizes: Sizes,
    image: Tensor,
    text: Tensor,
    time: Tensor,
    rotation: Rotation,
    norms: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """A block up to its attention: query, key, value (B,H,T+L,D) and the modulations of image and text
    (B or 2B,6,1,D)."""
    mods = linears["img_mod.1"](F.silu(time)).unflatten(1, (6, 1, -1))
    text_mods = linears["txt_mod.1"](F.silu(time[: len(text)])).unflatten(1, (6, 1, -1))
    shift, scale, *_ = text_mods.unbind(1)
    there = modulated(text, shift, scale, sizes.eps)
    shift, scale, *_ = mods.unbind(1)
    here = by_part(modulated, image, shift, scale, sizes.eps)

    def heads(name: str, x: Tensor) -> Tensor:
        split: Tensor = linears[f"attn.{name}"](x).unflatten(-1, (sizes.heads, -1))
        return split

    def turned(added: str, own: str, text_norm: Tensor, image_norm: Tensor) -> Tensor:
        return rotated(heads(added, there), heads(own, here), text_norm, image_norm, rotation, sizes.eps_qk)

    norm_q, norm_k, norm_added_q, norm_added_k = norms
    query = turned("add_q_proj", "to_q", norm_added_q, norm_q)
    key = turned("add_k_proj", "to_k", norm_added_k, norm_k)
    value = torch.cat([heads("add_v_proj", there), heads("to_v", here)], 1)
    return *(x.transpose(1, 2) for x in (query, key, value)), mods, text_mods


def after(
    linears: Linears,
    sizes: Sizes,
    image: Tensor,
    text: Tensor,
    mixed: Tensor,
    mods: Tensor,
    text_mods: Tensor,
) -> tuple[Tensor, ...]:
    """Text and image, given what attention made of both (B,T+L,D)."""
    length, eps = text.shape[1], sizes.eps

    def mlp(stream: str, x: Tensor) -> Tensor:
        inner = F.gelu(linears[f"{stream}_mlp.net.0.proj"](x), approximate="tanh")
        output: Tensor = linears[f"{stream}_mlp.net.2"](inner)
        return output

    _, _, gate, shift, scale, gate2 = mods.unbind(1)
    image = by_part(gated, image, gate, linears["attn.to_out.0"](mixed[:, length:].contiguous()))
    image = by_part(gated, image, gate2, mlp("img", by_part(modulated, image, shift, scale, eps)))
    _, _, gate, shift, scale, gate2 = text_mods.unbind(1)
    text = gated(text, gate, linears["attn.to_add_out"](mixed[:, :length].contiguous()))
    text = gated(text, gate2, mlp("txt", modulated(text, shift, scale, eps)))
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


def _rotation(_: nn.Module, __: object, tables: tuple[Tensor, Tensor]) -> Rotation:
    """The model's complex tables (L, D/2) of image and text, as one for all tokens, text first."""
    turn = torch.cat([tables[1], tables[0]])[:, None]
    sin = torch.stack([-turn.imag, turn.imag], -1).flatten(-2)
    return turn.real.repeat_interleave(2, -1), sin
