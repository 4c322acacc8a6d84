"""Effects that map each pixel to another colour."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import FloatImage, blur, hsv, luma
from .registry import effect


@effect("Thermal camera", "colour", "recolour this picture with a strong palette", "colour", "luma")
def thermal(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """False colours of a heat camera: dark is cold and blue, light is hot and yellow."""
    level = draw.stretch(blur(luma(image), 1.0))
    stops = [
        (0.01, 0.0, 0.12),
        (0.25, 0.02, 0.55),
        (0.75, 0.06, 0.5),
        (0.98, 0.4, 0.1),
        (1, 0.8, 0.15),
        (1, 1, 0.85),
    ]
    return draw.gradient_map(level, stops)


@effect("Duotone poster", "colour", "recolour that picture with a strong palette", "colour", "luma")
def duotone(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Two inks: a dark one of any hue, a light one of a far hue."""
    hue = rng.random()
    dark, light = hsv(hue, 0.9, 0.38), hsv(hue + rng.uniform(0.3, 0.7), 0.55, 1.0)
    level = draw.stretch(luma(image))
    return draw.gradient_map(level * level * (3 - 2 * level), [dark, light])
