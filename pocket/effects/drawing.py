"""Effects that redraw the picture with lines."""

from __future__ import annotations

import numpy as np

from .. import draw, patterns
from ..draw import FloatImage, at_half_size, blur, luma, mix, rgb
from .registry import effect


@effect("Pencil sketch", "drawing", "redraw this picture with lines", "one-to-many", "edges")
@at_half_size
def sketch(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Dark pencil contours and slanted hatching on cream paper; slant and place of the hatching vary."""
    level = draw.stretch(blur(luma(image), 2.0))
    angle = rng.choice([-1, 1]) * rng.uniform(0.6, 0.95)
    shade = 0.6 * patterns.hatching(level, rng, 7.5, angle)
    shade = np.maximum(shade, 0.6 * patterns.hatching(level + 0.42, rng, 7.5, angle + np.pi / 2))
    ink = np.maximum(shade, draw.contour(image))
    return mix(rgb((0.98, 0.95, 0.87)), rgb((0.16, 0.15, 0.19)), ink)


@effect("Blueprint", "drawing", "redraw that picture with lines", "one-to-many", "edges")
@at_half_size
def blueprint(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """White contours and a pale grid at any place on blueprint blue."""
    y, x = draw.grid(*image.shape[:2])
    step = 16
    up, across = (y + rng.integers(step)) % step, (x + rng.integers(step)) % step
    lines = ((up < 2) | (across < 2)).astype(np.float32)
    level = draw.stretch(blur(luma(image), 1.5))
    ground = mix(rgb((0.04, 0.17, 0.47)), rgb((0.14, 0.38, 0.76)), level)
    ground = mix(ground, rgb((0.55, 0.75, 0.98)), lines * np.float32(0.38))
    return mix(ground, rgb((0.97, 0.99, 1.0)), draw.contour(image))
