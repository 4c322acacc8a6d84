"""Effects that redraw the picture with lines."""

from __future__ import annotations

import numpy as np
from PIL import ImageFilter

from .. import draw, patterns
from ..draw import Canvas, FloatImage, at_half_size, blur, from_pillow, hsv, luma, mix, rgb, to_pillow
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


@effect("Chalkboard", "drawing", "draw it with coloured chalk on a blackboard", "one-to-many", "edges")
@at_half_size
def chalkboard(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Pastel chalk contours of changing hues on a dark board with wiped, dusty smears and a wooden frame."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    wiped = Canvas(size)
    for place in draw.scatter(rng, size, int(rng.integers(3, 5)), 22):
        angle, reach = rng.uniform(-0.5, 0.5), rng.uniform(14, 22)
        swipe = place + np.outer((-reach, reach), (np.sin(angle), np.cos(angle)))
        wiped.line(swipe.astype(np.float32), 11, (1, 1, 1), 0.45)
    board = mix(rgb((0.05, 0.2, 0.14)), rgb((0.12, 0.15, 0.2)), rng.random())
    ground = mix(board, rgb((0.8, 0.85, 0.82)), blur(wiped.over(np.zeros_like(image))[..., 0], 2.5))
    index, _ = draw.voronoi(draw.scatter(rng, size, 6, 16), size)
    chalks = np.stack([hsv(hue, 0.4, 1) for hue in rng.random(6)])
    drawn = mix(ground, chalks[index], draw.contour(image, threshold=0.15))
    frame = np.maximum(np.abs(y - size / 2 + 0.5), np.abs(x - size / 2 + 0.5)) > size / 2 - 3.5
    return mix(drawn, rgb((0.6, 0.38, 0.18)), frame.astype(np.float32))


@effect("Woodcut", "drawing", "cut the picture into wood and print it", "one-to-many", "luma")
def woodcut(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Bold wavy black lines of any direction on cream, thicker where the picture is dark."""
    y, x = draw.grid(*image.shape[:2])
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    across = cos * y + sin * x + 5 * np.sin((sin * y - cos * x) * 2 * np.pi / 52 + phase) + rng.uniform(0, 14)
    ink = patterns.bands(draw.stretch(blur(luma(image), 1.5)), across, 14)
    return mix(rgb((0.96, 0.91, 0.78)), rgb((0.05, 0.04, 0.04)), ink)


@effect("Topographic map", "drawing", "turn it into a contour map", "one-to-many", "luma")
def topographic(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Bands of like brightness in the colours of one of four maps, dark contour lines between them."""
    palettes = (
        [(0.2, 0.45, 0.75), (0.35, 0.65, 0.4), (0.75, 0.8, 0.45), (0.85, 0.65, 0.4), (1, 1, 0.98)],
        [(0.45, 0.2, 0.15), (0.75, 0.4, 0.2), (0.9, 0.65, 0.35), (0.97, 0.85, 0.6), (1, 0.98, 0.9)],
        [(0.05, 0.2, 0.45), (0.1, 0.45, 0.65), (0.3, 0.7, 0.75), (0.65, 0.88, 0.8), (0.98, 0.95, 0.75)],
        [(0.25, 0.15, 0.4), (0.55, 0.25, 0.5), (0.85, 0.45, 0.5), (0.98, 0.7, 0.5), (1, 0.95, 0.75)],
    )
    level = draw.stretch(blur(luma(image), 6))
    band = np.floor(level * 4.2 + rng.uniform(0, 0.8)).astype(np.float32) / np.float32(4)
    steps = to_pillow(band)
    lines = steps.filter(ImageFilter.MaxFilter(5)), steps.filter(ImageFilter.MinFilter(5))
    rise = from_pillow(lines[0]) - from_pillow(lines[1])
    ground = draw.gradient_map(band, palettes[int(rng.integers(4))])
    return mix(ground, rgb((0.22, 0.14, 0.1)), blur((rise > 0.1).astype(np.float32), 0.5))


@effect("Comic", "drawing", "make it a comic book panel", "one-to-many", "edges")
@at_half_size
def comic(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Flat vivid colours, thick black outlines, and coarse dots of one hue that burst from a corner."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    vivid = draw.tone(draw.stretch(blur(image, 1.2)) ** np.float32(0.8), 2, (1, 1, 1))
    flat = np.minimum(np.floor(vivid * 3), 2) * np.float32(0.4) + np.float32(0.2)
    row, column = size * rng.integers(2, size=2)
    level = np.clip(np.hypot(y - row, x - column) / rng.uniform(38, 50), 0, 1).astype(np.float32)
    burst = mix(flat, hsv(rng.random(), 0.95, 1), patterns.dots(level, rng, 7.5, 0.6))
    return mix(burst, rgb((0.02, 0.02, 0.04)), draw.contour(image, threshold=0.12))


@effect("Engraving", "drawing", "engrave it in rings like a banknote", "one-to-many", "luma")
def engraving(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Rings of sepia ink around a random place on cream, thicker where the picture is dark."""
    y, x = draw.grid(*image.shape[:2])
    row, column = rng.uniform(0.15, 0.85, 2) * image.shape[0]
    ink = patterns.bands(draw.stretch(blur(luma(image), 1.5)), np.hypot(y - row, x - column), 13)
    return mix(rgb((0.99, 0.94, 0.8)), rgb((0.4, 0.19, 0.07)), ink)
