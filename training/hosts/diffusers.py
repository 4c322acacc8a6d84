"""What the hosts on diffusers have in common: its Qwen-Image transformer, made or loaded, small, sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ...pocket import TRANSFORMER
from ..fp8 import PACKED, quantize_base
from ..frozen import blocks_of
from ..offload import Offload
from ..sharding import Pace

PATCH = 2


def pocket_transformer() -> nn.Module:
    """A Qwen-Image-Edit transformer of pocket size (6.9M parameters), untrained, on the current default
    device.
    """
    build: Any = QwenImageTransformer2DModel  # its own annotations are of no use
    model: nn.Module = build(patch_size=PATCH, **TRANSFORMER)
    return model


def load_pocket_transformer(path: Path) -> nn.Module:
    """The pocket base of a file, frozen, float32, evaluation mode."""
    model = pocket_transformer()
    weights: Mapping[str, Tensor] = load_file(path)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval().requires_grad_(False)


def keep_small(
    transformer: nn.Module, device: torch.device | str, base_dtype: str, offload: bool | int
) -> Offload | None:
    """Let a frozen transformer, found on the CPU, take less of the device; call before it goes there.

    Args:
        base_dtype: "fp8" packs the blocks' weights, see :mod:`~collectionlora.training.fp8`; "bf16" leaves
            them as they are.
        offload: how many blocks wait in host memory (True: all), see :mod:`~collectionlora.training.offload`.

    Raises:
        ValueError: more blocks than the model has.
    """
    made = Offload(transformer, device, offload) if offload else None
    if base_dtype == PACKED:
        quantize_base(transformer, device)
    return made.attach() if made else None


def shard(transformer: Any, device: torch.device | str, ready: Callable[[], None] = lambda: None) -> Pace:
    """Split the blocks of a frozen transformer over the processes of a run.

    ready: brings the transformer to the device, where it is not always.
    """
    config = transformer.config
    # computed in what the model is called with
    dtype = next(transformer.parameters()).dtype
    given = {"device": device, "dtype": dtype}

    def tiny() -> Tensor:
        """One token of noise, one of the source, one word."""
        ready()
        tokens = torch.zeros(1, 2, config.in_channels, requires_grad=torch.is_grad_enabled(), **given)
        output: Tensor = transformer.forward(
            hidden_states=tokens,
            encoder_hidden_states=torch.zeros(1, 1, config.joint_attention_dim, **given),
            timestep=torch.ones(1, **given),
            img_shapes=[[(1, 1, 1)] * 2],
            return_dict=False,
        )[0]
        return output

    return Pace(transformer, blocks_of(transformer), tiny)


def kept_identity(identity: str, base_dtype: str) -> str:
    """A host's identity, given that of its files: packed weights are other weights."""
    return f"{identity} {PACKED}" if base_dtype == PACKED else identity


class EditVelocity(nn.Module):
    """v(x_sigma, sigma | text, source): packs latents into tokens, appends the source's tokens, runs the
    transformer.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, x: Tensor, sigma: Tensor, text: Tensor, source: Tensor, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """x, source (B,C,h,w) with h, w even; sigma (B,); text (B,T,D) -> velocity (B,C,h,w).

        lengths: of prompts that are padded; for fused blocks alone.
        """
        height, width = x.shape[-2:]
        frame = (1, height // PATCH, width // PATCH)
        tokens = pack(x)
        embed: Any = self.transformer.time_text_embed
        hook = embed.time_proj.register_forward_pre_hook(partial(_exact, sigma.float()))
        try:
            output = self.transformer(
                hidden_states=torch.cat([tokens, pack(source)], 1),
                encoder_hidden_states=text,
                timestep=sigma,
                img_shapes=[[frame, frame]] * len(x),
                attention_kwargs=None if lengths is None else {"lengths": lengths},
                return_dict=False,
            )[0]
        finally:
            hook.remove()
        return unpack(output[:, : tokens.shape[1]], height, width)


def _exact(sigma: Tensor, _: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """Times as they are, as in ComfyUI: diffusers rounds them to the model's precision, .9545 to .9531 in
    bfloat16. Models that modulate the source's tokens by themselves ask for time 0 too."""
    return (sigma if len(given[0]) == len(sigma) else torch.cat([sigma, torch.zeros_like(sigma)]),)


def pack(latents: Tensor) -> Tensor:
    """(B,C,h,w) -> (B, h/2*w/2, 4C) tokens of 2 x 2 latents, channels outermost as Qwen-Image packs them."""
    b, c, h, w = latents.shape
    split = latents.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // PATCH**2, c * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack` for latents of `height` x `width`."""
    b, _, features = tokens.shape
    c = features // PATCH**2
    split = tokens.reshape(b, height // PATCH, width // PATCH, c, PATCH, PATCH)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)
