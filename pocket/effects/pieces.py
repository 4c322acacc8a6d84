"""Effects that rebuild the picture from pieces."""

from __future__ import annotations

import numpy as np

from .. import draw, patterns
from ..draw import FloatImage, at_half_size, blur, hsv, luma, mix, rgb
from .registry import effect


@effect("Stained glass", "pieces", "rebuild this picture from pieces", "one-to-many", "luma")
@at_half_size
def stained_glass(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Random cells of saturated glass, lighter towards their middle, between dark leads."""
    size = image.shape[0]
    index, border = draw.voronoi(draw.jittered_points(rng, size, 12, 0.85), size)
    glass = draw.cell_means(draw.stretch(image), index)
    grey = luma(glass)[..., None]
    glass = np.clip((grey + 1.6 * (glass - grey) - 0.5) * 1.15 + 0.55, 0, 1)
    shade = rng.uniform(0.84, 1.12, int(index.max()) + 1).astype(np.float32)[index]
    glass = np.clip(glass * (shade * (0.9 + 0.018 * np.minimum(border, 10)))[..., None], 0, 1)
    return mix(glass, rgb((0.05, 0.05, 0.07)), np.clip(2.0 - border, 0, 1))


@effect("Halftone print", "pieces", "rebuild that picture from pieces", "one-to-many", "luma")
@at_half_size
def halftone(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Round dots of one random ink on white paper, larger where the picture is dark, on a turned lattice."""
    angle = rng.uniform(0.35, 1.2)
    dots = patterns.dots(draw.stretch(blur(luma(image), 2.2)), rng, 7.5, angle)
    return mix(rgb((0.99, 0.98, 0.95)), hsv(rng.random(), 0.85, 0.62), dots)
