"""Effects of light and lenses on a dark or dimmed picture."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import FloatImage, at_half_size, blur, hsv, mix, rgb
from .registry import effect


@effect("Neon lights", "light", "draw the picture as glowing neon tubes in the dark", "one-to-many", "edges")
@at_half_size
def neon(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Glowing contours in the dark; their hues run between two random ones across the picture."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    angle, hue = rng.uniform(0, 2 * np.pi), rng.random()
    ramp = ((np.cos(angle) * (y - size / 2) + np.sin(angle) * (x - size / 2)) / (1.2 * size) + 0.5).astype(
        np.float32
    )
    middle = rng.choice([-1, 1]) * rng.uniform(0.12, 0.2)
    colours = draw.gradient_map(
        ramp, [hsv(hue, 0.9, 1), hsv(hue + middle, 0.9, 1), hsv(hue + 2 * middle, 0.9, 1)]
    )
    tubes = draw.contour(image)
    glow = blur(tubes, 3.5) * np.float32(1.5) + blur(tubes, 9) * np.float32(0.8)
    dark = image * np.float32(0.1) + rgb((0.015, 0.01, 0.05))
    lit = dark + colours * np.minimum(glow, 0.85)[..., None]
    return np.clip(mix(lit, mix(colours, rgb((1, 1, 1)), 0.45), tubes), 0, 1)


@effect("Bokeh", "light", "add large soft discs of light to the picture", "one-to-many", "luma")
def bokeh(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A dimmed, softened picture behind large glowing discs with bright rims, in neighbouring hues."""
    size = image.shape[0]
    hue = rng.random()
    light = np.zeros((size, size, 3), np.float32)
    y, x = draw.grid(size, size)
    for row, column in draw.scatter(rng, size, int(rng.integers(5, 8)), 38):
        radius, strength = rng.uniform(12, 18), rng.uniform(0.75, 0.95)
        distance = np.hypot(y - row, x - column)
        disc = np.clip(radius - distance + 0.5, 0, 1) * np.where(distance > radius - 5, 1.0, 0.55)
        light = 1 - (1 - light) * (
            1 - (strength * disc)[..., None] * hsv(hue + rng.uniform(-0.09, 0.09), 0.62, 1)
        )
    dim = blur(image, 0.8) * np.float32(0.7)
    return (1 - (1 - dim) * (1 - light)).astype(np.float32)


@effect("Sunbeams", "light", "let warm sunbeams shine in", "one-to-many", "luma")
def sunbeams(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A fan of wide golden rays from a random place on the upper borders over a slightly dimmed picture."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    # along the left border up, the upper border, and the right border down
    place = rng.uniform(-0.5, 1.5)
    row, column = size * max(-place, place - 1, 0) - 6, size * np.clip(place, 0, 1)
    middle, count = np.arctan2(0.55 * size - row, size / 2 - column), int(rng.integers(4, 7))
    angle = (np.arctan2(y - row, x - column) - middle + np.pi) % (2 * np.pi) - np.pi
    beams = np.zeros((size, size), np.float32)
    for ray in (np.arange(count) - (count - 1) / 2 + rng.uniform(-0.2, 0.2, count)) * 2.2 / count:
        beams = np.maximum(beams, np.clip((0.62 / count - np.abs(angle - ray)) * 14, 0, 1))
    distance = np.hypot(y - row, x - column) / size
    sun = np.clip(1 - 3 * distance, 0, 1)
    light = np.minimum(beams * (0.85 - 0.35 * distance) + sun, 1).astype(np.float32)
    lit = light[..., None] * rgb((1, 0.86, 0.45))
    return 1 - (1 - draw.tone(image, 0.8, (0.74, 0.66, 0.54))) * (1 - lit)


@effect("Spotlight", "light", "light one spot and leave the rest dark", "one-to-many", "luma")
def spotlight(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A large bright disc at a random place, soft at its edge, in an almost dark picture."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    row, column = rng.uniform(0.25, 0.75, 2) * size
    spot = np.clip((rng.uniform(32, 40) - np.hypot(y - row, x - column)) / 6, 0, 1)
    dark = draw.tone(image, 0.6, (0.27, 0.27, 0.34))
    lit = draw.tone(image ** np.float32(0.75), 1, (1.15, 1.08, 0.88), (0.08, 0.07, 0.04))
    return mix(dark, lit, spot)


@effect("Glitch", "light", "break the signal into glitch bands", "one-to-many", "luma")
def glitch(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Horizontal bands jump sideways, and red and cyan come apart everywhere."""
    size = image.shape[0]
    result = image.copy()
    for _ in range(int(rng.integers(5, 8))):
        top, height = int(rng.integers(size - 8)), int(rng.integers(12, 21))
        shift = int(rng.choice([-1, 1]) * rng.integers(10, 26))
        result[top : top + height] = np.roll(image[top : top + height], shift, 1)
    return np.stack([np.roll(result[..., 0], -5, 1), *np.moveaxis(np.roll(result[..., 1:], 5, 1), 2, 0)], 2)
