"""Hatching, print dots and brush strokes: what both the effects and the general edits draw with."""

from __future__ import annotations

import numpy as np

from . import draw
from .draw import Canvas, FloatImage, Points

# Corners of a brush stroke, along and aside: a bar with rounded ends.
_BAR = ((1, 0.45), (0.75, 1), (-0.75, 1), (-1, 0.45), (-1, -0.45), (-0.75, -1), (0.75, -1), (1, -0.45))


def hatching(level: FloatImage, rng: np.random.Generator, period: float, angle: float) -> FloatImage:
    """Parallel pencil lines (H,W), thicker where `level` is darker and none where it is light."""
    y, x = draw.grid(*level.shape)
    wobble = 1.2 * np.sin(y / rng.uniform(9, 14) + rng.uniform(0, 6)) + 1.2 * np.sin(x / rng.uniform(9, 14))
    across = np.cos(angle) * y + np.sin(angle) * x + rng.uniform(0, period) + wobble
    distance = np.abs(across % period - period / 2)
    width = np.clip((0.62 - level) / 0.62, 0, 1) * period * 0.36
    return np.where(width > 0.35, np.clip(width - distance + 0.5, 0, 1), 0).astype(np.float32)


def dots(level: FloatImage, rng: np.random.Generator, period: float, angle: float) -> FloatImage:
    """Round dots (H,W), larger where `level` is dark, at any place on a lattice turned by `angle`."""
    y, x = draw.grid(*level.shape)
    period, cos, sin = np.float32(period), np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift_v, shift_u = rng.uniform(0, period, 2).astype(np.float32)
    v, u = cos * y - sin * x + shift_v, sin * y + cos * x + shift_u
    middle_v, middle_u = (np.floor(v / period) + 0.5) * period, (np.floor(u / period) + 0.5) * period
    # Each dot takes the darkness at its middle, turned back to the picture: all dots are round.
    back_v, back_u = middle_v - shift_v, middle_u - shift_u
    middles = cos * back_v + sin * back_u, cos * back_u - sin * back_v
    darkness = 1 - draw.warp(np.repeat(level[..., None], 3, 2), *middles)[..., 0]
    radius = period * np.float32(0.61) * np.clip(darkness, 0, 1) ** np.float32(0.7)
    return np.clip(radius - np.hypot(v - middle_v, u - middle_u) + 0.5, 0, 1)


def strokes(
    canvas: Canvas, places: Points, angle: FloatImage, reach: FloatImage, width: float, colours: FloatImage
) -> None:
    """Lay bars with rounded ends on the canvas, in order: at `places` (N,2) as y, x, along `angle` (N,), of
    half length `reach` (N,), in `colours` (N,3).
    """
    along = np.stack([np.sin(angle), np.cos(angle)], 1) * reach[:, None]
    aside = np.stack([np.cos(angle), -np.sin(angle)], 1) * width / 2
    corners = np.stack([places + a * along + b * aside for a, b in _BAR], 1).astype(np.float32)
    for outline, colour in zip(corners, colours, strict=True):
        canvas.polygon(outline, colour)


def bands(level: FloatImage, across: FloatImage, period: float) -> FloatImage:
    """Ink lines (H,W), one each `period` of `across`: thicker where `level` is dark, none in the lights."""
    distance = np.abs(across % period - period / 2)
    width = np.minimum(0.5 - 0.55 * level, 0.37) * period
    return np.where(width > 2, np.clip(width - distance + 0.5, 0, 1), 0).astype(np.float32)
