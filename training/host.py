"""What the method asks of whoever lends it a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Texts = Tensor | Sequence[Tensor]
"""Embeddings of B prompts: (B,T,D), or B of (T,D) whose lengths differ."""


class Host(Protocol):
    """A flow-matching edit model with its text encoder and autoencoder.

    Images are (B,3,H,W) in [0,1]; latents (B,C,h,w) of about unit variance, the model's own scaling applied.
    """

    name: str
    """What a collection file calls this base."""
    identity: str
    """Changes whenever a weight of transformer, text encoder or autoencoder does."""
    device: torch.device
    dtype: torch.dtype
    """Of the transformer's arithmetic, so that what never changes (teachers, prompts) is kept in it."""
    transformer: nn.Module
    """Frozen; adapters are hooked into its Linears."""

    text_sees_image: bool
    """Whether `encode_text` depends on the image; if not, a prompt is encoded once."""

    reference_method: str
    """ComfyUI's name for how the model is shown the source, where its file may not say; "" as it says."""

    def velocity(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        """x, source (B,C,h,w), sigma (B,), text of B prompts without padding -> (B,C,h,w).

        Raises ValueError for prompts of several lengths, where the model cannot take them in one batch.
        """
        ...

    def encode_text(self, prompts: Sequence[str], image: Tensor | None) -> list[Tensor]:
        """Prompts -> (T,D) each, seen with one source image (3,H,W) if the encoder looks at it."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Images -> latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images."""
        ...

    def read_image(self, path: Path) -> Tensor:
        """(3,H,W) in [0,1], resized as this model was trained. Raises ValueError naming the file."""
        ...
