"""Picture files to tensors and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_picture(path: Path) -> Image.Image:
    """A file as upright RGB, what is transparent on white. Raises ValueError naming the file."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would cut off at 8
                picture = Image.fromarray(
                    (np.asarray(picture, np.float32) / 257).clip(0, 255).astype(np.uint8)
                )
            if picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            return picture.convert("RGB")
    except Exception as error:  # decoders raise many kinds on damaged files
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def fitted_size(width: int, height: int, long_side: int, multiple: int, square: bool) -> tuple[int, int]:
    """(width, height) of the picture a model works on: of that long side, both sides whole multiples."""
    if square:
        width = height = 1
    scale = long_side / max(width, height)
    sides = [max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in (width, height)]
    return sides[0], sides[1]


def fitted(picture: Image.Image, long_side: int, multiple: int, square: bool = False) -> Tensor:
    """(3,H,W) in [0,1]: the largest central part of the right shape, scaled to `fitted_size`."""
    size = fitted_size(*picture.size, long_side, multiple, square)
    return to_tensor(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as (3,H,W) in [0,1]."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).movedim(-1, 0).contiguous()


def to_pixels(image: Tensor) -> Tensor:
    """[0,1] as uint8, a quarter of the memory; exact for what was read from a file of 8 bits."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def to_floats(pixels: Tensor) -> Tensor:
    """Inverse of `to_pixels`."""
    return pixels.float() / 255


def to_pil(image: Tensor) -> Image.Image:
    """(3,H,W) in [0,1] as a PIL picture."""
    array = (image.detach().clamp(0, 1) * 255 + 0.5).to(torch.uint8).movedim(0, -1).cpu().numpy()
    return Image.fromarray(array)
