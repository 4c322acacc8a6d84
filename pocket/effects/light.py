"""Effects of light and lenses on a dark or dimmed picture."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import FloatImage, at_half_size, blur, hsv, luma, mix, rgb
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
    for row, column in draw.scatter(rng, size, int(rng.integers(7, 11)), 28):
        radius, strength = rng.uniform(13, 23), rng.uniform(0.5, 0.85)
        distance = np.hypot(y - row, x - column)
        disc = np.clip(radius - distance + 0.5, 0, 1) * np.where(distance > radius - 4, 1.0, 0.72)
        light = 1 - (1 - light) * (
            1 - (strength * disc)[..., None] * hsv(hue + rng.uniform(-0.09, 0.09), 0.62, 1)
        )
    dim = blur(image, 0.8) * np.float32(0.7)
    return (1 - (1 - dim) * (1 - light)).astype(np.float32)
