"""Joint attention of the Qwen-Image transformer spelled out, for the pocket's training on a CPU.

At 160 tokens and heads of 32, PyTorch's fused attention takes five times as long in bfloat16 as plain matrix
products do; and the compiler knows no complex numbers, in which diffusers writes its rotary embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PlainAttention:
    """A processor for `transformer.set_attn_processor`: same results as diffusers' own, without masks."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image tokens (B,N,D) and text tokens (B,T,D) -> the same shapes."""
        if encoder_hidden_states_mask is not None or attention_mask is not None:
            raise ValueError("plain attention takes no masks: give all prompts one length")
        image, text, heads = hidden_states, encoder_hidden_states, attn.heads
        q = torch.cat(
            [
                attn.norm_added_q(attn.add_q_proj(text).unflatten(-1, (heads, -1))),
                attn.norm_q(attn.to_q(image).unflatten(-1, (heads, -1))),
            ],
            1,
        )
        k = torch.cat(
            [
                attn.norm_added_k(attn.add_k_proj(text).unflatten(-1, (heads, -1))),
                attn.norm_k(attn.to_k(image).unflatten(-1, (heads, -1))),
            ],
            1,
        )
        values = attn.add_v_proj(text), attn.to_v(image)
        v = torch.cat([value.unflatten(-1, (heads, -1)) for value in values], 1)
        if image_rotary_emb is not None:
            angles = torch.cat([image_rotary_emb[1], image_rotary_emb[0]])
            cos, sin = angles.real[:, None], angles.imag[:, None]
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        mixed = attended(*(one.transpose(1, 2) for one in (q, k, v))).transpose(1, 2).flatten(2)
        length = text.shape[1]
        return attn.to_out[1](attn.to_out[0](mixed[:, length:])), attn.to_add_out(mixed[:, :length])


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B,H,N,D)."""
    weights: Tensor = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
    return weights @ v


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B,N,H,D), each pair of neighbours turned; cos, sin (N,1,D/2)."""
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(3).to(x.dtype)
