"""What the judges measure on single images: subject preservation, detail energy, PSNR. Pure functions.

Images are (B,3,H,W) in [0,1]; every measure returns (B,) float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

SubjectKind = Literal["luma", "edges", "inverse", "mirror", "quarter"]
"""How the source can still be recognised in a result: by its coarse brightness; by its contours; by its
coarse brightness whatever the sign; by the coarse brightness of its upper half (the lower half mirrors it),
or of its upper left quarter (the others mirror it)."""
SUBJECT_KINDS: tuple[str, ...] = get_args(SubjectKind)

COARSE = 16
"""Cells along each side of the coarse brightness map."""
EDGE_SCALE = 4
"""Pixels a cell of the edge map, along each side."""


def luma(images: Tensor) -> Tensor:
    """Brightness (B,1,H,W), Rec. 601."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def subject_score(results: Tensor, sources: Tensor, kind: SubjectKind) -> Tensor:
    """How much of the source's subject is in the result: a correlation in [-1,1], 1 = fully preserved.

    0 where either side is flat. Raises ValueError for an unknown kind or different shapes.
    """
    if results.shape != sources.shape:
        raise ValueError(f"results {tuple(results.shape)} and sources {tuple(sources.shape)} differ in shape")
    if kind == "edges":
        return correlation(edge_map(results), edge_map(sources))
    left, right = coarse_luma(results), coarse_luma(sources)
    if kind == "luma":
        return correlation(left, right)
    if kind == "inverse":
        return correlation(left, right).abs()
    if kind == "mirror":
        return correlation(left[..., : COARSE // 2, :], right[..., : COARSE // 2, :])
    if kind == "quarter":
        half = slice(COARSE // 2)
        return correlation(left[..., half, half], right[..., half, half])
    raise ValueError(f"unknown subject kind {kind!r}; there are {', '.join(SUBJECT_KINDS)}")


def coarse_luma(images: Tensor) -> Tensor:
    """Mean brightness of 16 x 16 cells, (B,1,16,16)."""
    return F.adaptive_avg_pool2d(luma(images), COARSE)


def edge_map(images: Tensor) -> Tensor:
    """Strength of contours at a quarter of the resolution, (B,1,H/4,W/4).

    The gradient is taken at full resolution and averaged after, so that a line and the step it stands for
    agree.
    """
    grey = F.pad(luma(images), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return F.avg_pool2d((across.square() + down.square() + 1e-12).sqrt(), EDGE_SCALE)


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation (B,) of two maps (B,...); 0 where one of them is flat (deviation under 1e-4)."""
    left, right = (side.flatten(1).double() for side in (left, right))
    left, right = left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True)
    spread = left.square().mean(1).sqrt(), right.square().mean(1).sqrt()
    value = (left * right).mean(1) / (spread[0] * spread[1]).clamp(min=1e-12)
    return torch.where(torch.minimum(*spread) < 1e-4, 0.0, value.clamp(-1, 1)).float()


def detail_energy(images: Tensor) -> Tensor:
    """Mean square of what a 5-tap binomial blur (about one pixel) takes away. Compare by ratios of sums."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype) / 16
    kernel = (taps[:, None] * taps[None]).expand(3, 1, 5, 5)
    smooth = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    return (images - smooth).square().flatten(1).mean(1)


def psnr(images: Tensor, truths: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, at most 100. Only meaningful where the truth is unique."""
    error = (images.clamp(0, 1) - truths.clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))
