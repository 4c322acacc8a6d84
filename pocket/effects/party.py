"""Effects that put things on the picture."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import Canvas, FloatImage, hsv, luma
from .registry import effect


@effect("Confetti", "party", "sprinkle small pieces over this picture", "one-to-many", "luma")
def confetti(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Vivid paper pieces and two streamers at random places over the picture."""
    size = image.shape[0]
    canvas = Canvas(size)
    for _ in range(2):
        t = np.linspace(0, 1, 24)
        y, x = rng.uniform(0, size, 2)
        angle, reach, curl = rng.uniform(0, 2 * np.pi), rng.uniform(60, 90), rng.uniform(6, 10)
        along, aside = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
        path = np.array([y, x]) + np.outer(t - 0.5, along) * reach + np.outer(np.sin(t * 10), aside) * curl
        canvas.line(path.astype(np.float32), 5, hsv(rng.random(), 0.85, 1))
    for y, x in draw.scatter(rng, size, int(rng.integers(18, 24)), 16):
        colour, turn, radius = hsv(rng.random(), 0.85, 1), rng.uniform(0, np.pi), rng.uniform(7, 10)
        kind = ("square", "circle", "triangle", "strip")[int(rng.integers(4))]
        if kind == "strip":
            up, across = 1.1 * radius * np.sin(turn), 1.1 * radius * np.cos(turn)
            canvas.line(np.array([(y - up, x - across), (y + up, x + across)], np.float32), 7, colour)
        else:
            draw.stamp(canvas, kind, y, x, radius * (0.8 if kind == "circle" else 1), colour, turn)
    return canvas.over(image)
