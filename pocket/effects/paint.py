"""Effects that paint the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .. import draw, patterns
from ..draw import Canvas, FloatImage, at_half_size, blur, from_pillow, hsv, luma, mix, rgb, to_pillow
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


@effect("Watercolour", "paint", "paint a loose watercolour of the scene", "one-to-many", "luma")
@at_half_size
def watercolour(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Pale pools of colour with darker rims that flow into each other; ragged white paper all around."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    noise = from_pillow(to_pillow(rng.random((9, 9, 3))).resize((size, size), Image.Resampling.BICUBIC)) - 0.5
    soft = draw.warp(blur(draw.stretch(image), 1.5), y + 5 * noise[..., 0], x + 5 * noise[..., 1])
    level = 4 * (luma(soft) + 0.3 * noise[..., 2])
    pools = draw.tone(soft, 1.6, (1, 1, 1)) + ((np.floor(level) + 0.5 - level) / 4)[..., None]
    wash = 1 - 0.75 * (1 - np.clip(pools, 0, 1))
    wash = blur(wash * (1 - 0.4 * np.clip(level % 1 * 3 - 2, 0, 1))[..., None], 0.6)
    inside = np.minimum(np.minimum(y, size - 1 - y), np.minimum(x, size - 1 - x)) - 4 + 9 * noise[..., 0]
    rim = np.clip(1 - np.abs(inside - 1.5) / 1.5, 0, 1)
    return mix(rgb((0.99, 0.98, 0.96)), mix(wash, wash * wash, 0.7 * rim), np.clip(inside, 0, 1))


@effect("Pointillism", "paint", "dab it in dots of pure paint", "one-to-many", "luma")
def pointillism(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Round dabs on cream in strong colours of the picture, some of them complementary."""
    size = image.shape[0]
    canvas = Canvas(size)
    soft = blur(draw.stretch(image), 2)
    places = draw.jittered_points(rng, size, 10, 0.7)
    for y, x in places[rng.permutation(len(places))]:
        colour = soft[min(int(y), size - 1), min(int(x), size - 1)]
        strength = 2.4 if rng.random() < 0.75 else -1.6
        canvas.disc(
            y,
            x,
            rng.uniform(5, 7),
            luma(colour) * (1 - strength) + strength * colour + rng.uniform(-0.12, 0.12, 3),
        )
    return canvas.over(np.broadcast_to(rgb((0.98, 0.94, 0.82)), image.shape))


@effect("Paint splatter", "paint", "splash bright paint all over it", "one-to-many", "luma")
def splatter(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large vivid splats of paint with rays and drops at random places over a grey picture."""
    size = image.shape[0]
    canvas = Canvas(size)
    for place in draw.scatter(rng, size, int(rng.integers(5, 9)), 36):
        colour, radius = hsv(rng.random(), 0.95, 1), rng.uniform(10, 14)
        canvas.disc(*place, radius, colour)
        for angle in np.arange(8) * np.pi / 4 + rng.uniform(-0.3, 0.3, 8):
            tip = place + rng.uniform(1.1, 1.8) * radius * np.array([np.sin(angle), np.cos(angle)])
            canvas.line(np.stack([place, tip]).astype(np.float32), 4.5, colour)
            canvas.disc(*tip, rng.uniform(3, 4.5), colour)
        angle = rng.uniform(0, 2 * np.pi)
        canvas.disc(*(place + 2.1 * radius * np.array([np.sin(angle), np.cos(angle)])), 4.5, colour)
    return canvas.over(draw.tone(image, 0.1, (0.9, 0.9, 0.9)))
