"""The pocket text encoder: bytes in, 32 tokens out. It stands where Qwen2.5-VL stands in the real model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

BYTES_PER_TOKEN = 6
TOKENS = 32
LONGEST = BYTES_PER_TOKEN * TOKENS
"""Longest prompt in bytes: a tag, a caption, and two of them composed fit."""
WIDTH = 64


def prompt_bytes(prompts: Sequence[str]) -> Tensor:
    """Prompts as (B, LONGEST) int64: byte + 1, 0 behind the end. Raises ValueError for a prompt that is too
    long.
    """
    rows = torch.zeros(len(prompts), LONGEST, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        data = prompt.encode()
        if len(data) > LONGEST:
            raise ValueError(
                f"prompt of {len(data)} bytes, the pocket text encoder takes {LONGEST}; "
                f"shorten it: {prompt[:60]!r}..."
            )
        row[: len(data)] = torch.tensor(list(data), dtype=torch.long) + 1
    return rows


class Block(nn.Module):
    """Pre-norm attention and feed-forward, 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Byte ids (B,192) from `prompt_bytes` -> embeddings (B,32,64). Always 32 tokens: no mask is ever
    needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, WIDTH)
        self.near = nn.Conv1d(WIDTH, WIDTH, 7, padding=3)
        self.pool = nn.Conv1d(WIDTH, WIDTH, 2 * BYTES_PER_TOKEN, stride=BYTES_PER_TOKEN, padding=3)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.1)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        x = self.pool(F.silu(x + self.near(x))).transpose(1, 2) + self.place
        return self.norm(self.blocks(x))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B,32,64). Raises ValueError for a prompt that is too long."""
        return self(prompt_bytes(prompts).to(self.place.device))

    @classmethod
    def load(cls, path: Path) -> TextEncoder:
        """The shipped encoder, ready to use: evaluation mode, float32, frozen."""
        model = cls()
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return model.eval().requires_grad_(False)
