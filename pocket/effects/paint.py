"""Effects that paint the picture."""

from __future__ import annotations

import numpy as np

from .. import draw, patterns
from ..draw import Canvas, FloatImage, at_half_size, blur, luma
from .registry import effect


@effect("Oil painting", "paint", "paint the picture with thick brush strokes", "one-to-many", "luma")
@at_half_size
def oil_strokes(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Thick strokes of the picture's colours along its edges and, elsewhere, a random flow."""
    size = image.shape[0]
    canvas = Canvas(size)
    soft, (up, across) = blur(image, 1.2), np.gradient(blur(luma(image), 2.5))
    detail, tangent = np.minimum(np.hypot(up, across) * 14, 1), np.arctan2(across, -up)
    phase, wave = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.02, 0.04, 2)
    for length, width, cell, least in ((20.0, 9.0, 9.0, 0.0), (13.0, 6.0, 6.5, 0.0), (9.0, 4.0, 5.0, 0.3)):
        places = draw.jittered_points(rng, size, cell)
        places = places[rng.permutation(len(places))]
        row, column = np.minimum(places, size - 1).astype(np.intp).T
        places, row, column = (array[detail[row, column] >= least] for array in (places, row, column))
        y, x = places.T
        angle = phase[0] + 1.2 * np.sin(y * wave[0] + phase[1]) + 1.2 * np.sin(x * wave[1] + phase[2])
        angle = np.where(detail[row, column] > 0.3, tangent[row, column], angle)
        reach = rng.uniform(0.4, 0.6, len(y)) * length
        colours = np.clip((soft[row, column] - 0.5) * 1.1 + 0.5 + rng.uniform(-0.08, 0.08, (len(y), 1)), 0, 1)
        patterns.strokes(canvas, places, angle, reach, width, colours)
    return canvas.over(soft)
