"""Effects of weather, water and fire."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import Canvas, FloatImage, luma, mix, rgb
from .registry import effect


@effect("Snowfall", "weather", "sprinkle small pieces over that picture", "one-to-many", "luma")
def snowfall(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A cold blue tone, soft white flakes at random places, and a snow drift along the bottom."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    grey = luma(image)[..., None]
    cold = (grey + 0.45 * (image - grey)) * rgb((0.62, 0.76, 0.95)) + rgb((0.04, 0.08, 0.14))
    far, near = Canvas(size), Canvas(size)
    for row, column in draw.scatter(rng, size, 14, 20):
        far.disc(row, column, rng.uniform(4, 5.5), (1, 1, 1), 0.75)
    for row, column in draw.scatter(rng, size, 9, 28):
        near.disc(row, column, rng.uniform(6.5, 9), (1, 1, 1))
    snowy = near.over(far.over(np.clip(cold, 0, 1).astype(np.float32)))
    phase = rng.uniform(0, 2 * np.pi, 2)
    top = size - 16 + 6 * np.sin(x * 2 * np.pi / 85 + phase[0]) + 2 * np.sin(x * 2 * np.pi / 41 + phase[1])
    drift = mix(
        rgb((0.97, 0.98, 1)), rgb((0.74, 0.83, 0.96)), np.clip((y - top) / 22, 0, 1).astype(np.float32)
    )
    return mix(snowy, drift, np.clip((y - top) / 1.5, 0, 1).astype(np.float32))


@effect("Water reflection", "weather", "reflect the picture in rippling water", "one-to-many", "mirror")
def reflection(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """The lower part becomes blue water that mirrors what is above it, with random ripples and glints."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    line = size * 9 // 16
    depth = np.maximum(y - line, 0) / (size - line)
    length, phase = rng.uniform(16, 22), rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(
        (y - line) / (0.6 + 0.4 * depth) * 2 * np.pi / length + phase[0] + 1.5 * np.sin(x / 19 + phase[1])
    )
    ripple = (1.5 + 4.5 * depth) * wave
    mirrored = draw.warp(
        image, (2 * line - 1 - y + 0 * x + 0.6 * ripple).astype(np.float32), (x + ripple).astype(np.float32)
    )
    water = mirrored * rgb((0.5, 0.68, 0.8)) + rgb((0.0, 0.06, 0.12)) + (0.07 * wave)[..., None]
    canvas = Canvas(size)
    for row, column in draw.scatter(rng, size, 16, 20):
        if row > line + 5:
            half = rng.uniform(8, 16)
            canvas.line(
                np.array([[row, column - half], [row, column + half]], np.float32), 4, (0.92, 0.98, 1), 0.8
            )
    wet = canvas.over(np.clip(water, 0, 1).astype(np.float32))
    return mix(image, wet, np.broadcast_to(np.clip(y - line + 1, 0, 1), (size, size)))
