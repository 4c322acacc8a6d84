"""Bad results made on purpose, to teach the judges' `broken` class what is clearly wrong (and to test them).

Images are (B,3,H,W) in [0,1]; every draw comes from the given generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; sigma in pixels."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = taps / taps.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def add_noise(images: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Gaussian noise of standard deviation `strength`, blotches of one to four pixels."""
    scale = 2 ** int(torch.randint(3, (), generator=draw))
    height, width = images.shape[2:]
    noise = torch.randn(len(images), 3, height // scale, width // scale, generator=draw)
    return (images + strength * F.interpolate(noise, (height, width), mode="nearest")).clamp(0, 1)


def shuffle_patches(images: Tensor, cells: int, draw: torch.Generator) -> Tensor:
    """Each image cut into cells x cells patches in random order. Sides must be divisible by cells."""
    batch, channels, height, width = images.shape
    split = images.reshape(batch, channels, cells, height // cells, cells, width // cells)
    patches = split.permute(0, 2, 4, 1, 3, 5).reshape(batch, cells * cells, channels, -1)
    order = torch.rand(batch, cells * cells, generator=draw).argsort(1)
    patches = patches.gather(1, order[:, :, None, None].expand_as(patches))
    back = patches.reshape(batch, cells, cells, channels, height // cells, width // cells)
    return back.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def blend(images: Tensor, others: Tensor, draw: torch.Generator) -> Tensor:
    """Mixtures of 35 to 65% of two images: what two effects bleeding into each other look like."""
    share = 0.35 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=draw)
    return images * (1 - share) + others * share


def break_results(results: Tensor, others: Tensor, strangers: Tensor, draw: torch.Generator) -> Tensor:
    """Break every result in one of five ways drawn at random.

    others: another effect's result of the same source (or the source itself); strangers: the same effect's
    result of another source. The five ways: blurred (sigma 2 to 4), noisy, shuffled in patches, blended with
    `others`, replaced by `strangers` (a wrong subject).
    """
    broken = []
    ways = torch.randint(5, (len(results),), generator=draw).tolist()
    for index, way in enumerate(ways):
        one = results[index : index + 1]
        amount = float(torch.rand((), generator=draw))
        if way == 0:
            broken.append(blur(one, 2 + 2 * amount))
        elif way == 1:
            broken.append(add_noise(one, 0.15 + 0.25 * amount, draw))
        elif way == 2:
            broken.append(shuffle_patches(one, 4 if amount < 0.5 else 8, draw))
        elif way == 3:
            broken.append(blend(one, others[index : index + 1], draw))
        else:
            broken.append(strangers[index : index + 1])
    return torch.cat(broken)
