"""Qwen-Image-Edit at any size with random weights, and random lessons for it: time and memory do not care."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..training.data import Lessons, Sample
from ..training.fp8 import quantize_block
from ..training.lora import PAPER_TARGETS, targeted
from ..training.offload import Offload
from ..training.planning.architecture import BLOCKS, LATENT_PIXELS, Architecture, Tokens
from ..training.randomness import generator

TEACHERS = ("one", "other")
TEACHER_RANK = 16


@dataclass(frozen=True)
class Size:
    """By default Qwen-Image-Edit's own, for an edit of 1024 x 1024 pixels."""

    architecture: Architecture = field(default_factory=Architecture)
    pixels: int = 1024
    text: int = 256
    """Tokens of a prompt."""
    rank: int = 32
    """Of student and fake score."""

    @property
    def tokens(self) -> Tokens:
        """Of an edit."""
        return Tokens.of(self.pixels, self.text)


def random_transformer(
    size: Size, device: torch.device, base_dtype: str = "bf16", offload: bool | int = False
) -> tuple[nn.Module, Offload | None]:
    """A frozen transformer, made on the device block by block, so that it never takes more than it will.

    Random numbers depend on `size` and the kind of device alone. Raises ValueError as `Offload` does.
    """
    model = _hollow(size)
    away = Offload(model, device, offload) if offload else None
    draw = torch.Generator(device).manual_seed(0)
    for name, child in model.named_children():
        if name == BLOCKS:
            for block in child.children():
                _fill(block, device, draw)
                if base_dtype == "fp8":
                    quantize_block(block)
                if offload:
                    block.to("cpu")
        else:
            _fill(child, device, draw)
    if away is not None:
        away.attach()
        model.to(device)  # resident blocks, and what is not a Linear of the others
    return model, away


def _hollow(size: Size) -> nn.Module:
    """The transformer without memory for its weights."""
    build: Any = QwenImageTransformer2DModel
    with torch.device("meta"):
        model = build(**asdict(size.architecture))
    rope = model.pos_embed  # its tables are neither parameters nor buffers
    model.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)
    for child in model.children():  # the model itself warns
        child.to(torch.bfloat16)
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


@torch.no_grad()
def _fill(module: nn.Module, device: torch.device, draw: torch.Generator) -> None:
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if "norm" in name and parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=draw)


def write_teachers(size: Size, folder: Path) -> dict[str, Path]:
    """A random LoRA file for each teacher, in bfloat16."""
    targets = targeted(size.architecture.linears, PAPER_TARGETS, "the model")
    files = {}
    for name in TEACHERS:
        tensors = {}
        for path, (out, into) in targets.items():
            draw = generator(0, name, path)
            for end, shape in (("lora_A", (TEACHER_RANK, into)), ("lora_B", (out, TEACHER_RANK))):
                weight = 0.01 * torch.randn(shape, generator=draw)
                tensors[f"transformer.{path}.{end}.weight"] = weight.bfloat16()
        files[name] = folder / f"{name}.safetensors"
        save_file(tensors, files[name])
    return files


def random_lessons(size: Size, device: torch.device) -> Lessons:
    """One sample for each teacher, with its image; the prompts of the second are a little shorter."""
    side, channels = size.pixels // LATENT_PIXELS, size.architecture.out_channels

    def image(*key: str) -> Tensor:
        return torch.randn(channels, side, side, generator=generator(0, *key)).to(device)

    def text(*key: str) -> Tensor:
        length = size.text - size.text // 16 * TEACHERS.index(key[0])
        shape = length, size.architecture.joint_attention_dim
        return torch.randn(shape, generator=generator(0, *key)).bfloat16().to(device)

    def sample(name: str) -> Sample:
        prompts = (text(name, role) for role in ("student", "teacher", "empty"))
        return Sample(name, image(name, "source"), *prompts, image(name, "target"))

    return Lessons({name: [sample(name)] for name in TEACHERS}, [])
