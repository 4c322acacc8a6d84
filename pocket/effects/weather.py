"""Effects of weather, water and fire."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import Canvas, FloatImage, hsv, mix, rgb
from .registry import effect


@effect("Snowfall", "weather", "sprinkle small pieces over that picture", "one-to-many", "luma")
def snowfall(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A cold blue tone, soft white flakes at random places, and a snow drift along the bottom."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    cold = draw.tone(image, 0.45, (0.62, 0.76, 0.95), (0.04, 0.08, 0.14))
    far, near = Canvas(size), Canvas(size)
    for row, column in draw.scatter(rng, size, 14, 20):
        far.disc(row, column, rng.uniform(4, 5.5), (1, 1, 1), 0.75)
    for row, column in draw.scatter(rng, size, 9, 28):
        near.disc(row, column, rng.uniform(6.5, 9), (1, 1, 1))
    snowy = near.over(far.over(cold))
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


@effect("Rain", "weather", "make it rain heavily", "one-to-many", "luma")
def rain(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A dim grey-blue picture behind pale slanted streaks, all of one random slant."""
    size = image.shape[0]
    slant = rng.choice([-1, 1]) * rng.uniform(0.2, 0.55)
    fall = np.array([np.cos(slant), np.sin(slant)])
    canvas = Canvas(size)
    for place in draw.scatter(rng, size, int(rng.integers(14, 21)), 20):
        canvas.line(place + np.outer((-0.5, 0.5), fall) * rng.uniform(26, 38), 4, (0.82, 0.91, 1), 0.85)
    return canvas.over(draw.tone(image, 0.25, (0.5, 0.58, 0.7), (0.06, 0.08, 0.12)))


@effect("Frost", "weather", "let frost grow in from the borders", "one-to-many", "luma")
def frost(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Ice crystals like ferns and a white haze grow in from two random borders of a cool picture."""
    size = image.shape[0]
    y, _ = draw.grid(size, size)
    result = draw.tone(image, 0.5, (0.72, 0.88, 1), (0.02, 0.06, 0.12))
    haze = np.broadcast_to(np.clip(0.75 - y / 36, 0, 1), (size, size))
    parts = [(0, 1, 0), *((start, 0.6 - 0.55 * start, turn) for start in (0.3, 0.65) for turn in (-1, 1))]
    for border in rng.permutation(4)[:2]:
        ice = Canvas(size)
        for x in np.arange(16, size, 32) + rng.uniform(-6, 6, 4):
            reach, lean = rng.uniform(28, 52), rng.uniform(-0.3, 0.3)
            for start, length, turn in parts:
                stem = reach * start * np.array([np.cos(lean), np.sin(lean)]) + (0, x)
                tip = stem + reach * length * np.array([np.cos(lean + turn), np.sin(lean + turn)])
                ice.line(np.array([stem, tip], np.float32), 4, (0.96, 0.99, 1))
        icy = ice.over(mix(np.rot90(result, border), rgb((0.7, 0.87, 1)), haze))
        result = np.rot90(icy, -border)
    return np.ascontiguousarray(result)


@effect("Lightning", "weather", "strike lightning through a stormy night", "one-to-many", "luma")
def lightning(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """One or two jagged glowing bolts from the top of a dark violet picture."""
    size = image.shape[0]
    canvas = Canvas(size)
    count = int(rng.integers(1, 3))
    for part in range(count):
        bends = int(rng.integers(5, 8))
        y = np.linspace(-4, size * rng.uniform(0.6, 0.95), bends)
        x = size * (part + rng.uniform(0.25, 0.75)) / count + np.cumsum(rng.uniform(-7, 7, bends))
        x = x + rng.uniform(5, 12, bends) * (-1) ** np.arange(bends)
        canvas.line(np.stack([y, x], 1).astype(np.float32), 6, (0.95, 0.92, 1))
    return canvas.shine(draw.tone(image, 0.5, (0.5, 0.38, 0.7), (0.04, 0.0, 0.08)), 5)


@effect("Flames", "weather", "set the bottom of the picture on fire", "one-to-many", "luma")
def flames(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Tongues of fire of any height along the bottom of a picture in warm light, yellow inside."""
    size = image.shape[0]
    fire = Canvas(size)
    t = np.linspace(-1, 1, 21)
    columns = np.arange(6) * size / 5 + rng.uniform(-7, 7, 6)
    heights, leans = rng.uniform(30, 66, 6), rng.uniform(-12, 12, 6)
    for part, colour in ((1.0, (0.86, 0.16, 0.03)), (0.68, (1, 0.5, 0.05)), (0.36, (1, 0.88, 0.3))):
        for column, height, lean in zip(columns, heights, leans, strict=True):
            rise = 1 - np.abs(t) ** 0.7
            y = size - part * height * rise
            x = column + 19 * part * np.sign(t) * np.sqrt(1 - rise) + lean * part * rise**2
            fire.polygon(np.stack([y, x], 1).astype(np.float32), colour)
    return fire.over(draw.tone(image, 0.8, (1, 0.8, 0.6), (0.1, 0.03, 0)))


@effect("Autumn leaves", "weather", "let autumn leaves fall over the scene", "one-to-many", "luma")
def autumn_leaves(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large pointed leaves in red, orange and yellow, with a dark midrib, over a picture in warm light."""
    size = image.shape[0]
    canvas = Canvas(size)
    t = np.linspace(-1, 1, 13)
    lens = np.concatenate([np.stack([t, 1 - t**2], 1), np.stack([-t, t**2 - 1], 1)])
    for place in draw.scatter(rng, size, int(rng.integers(10, 14)), 28):
        angle, reach, hue = rng.uniform(0, 2 * np.pi), rng.uniform(16, 21), rng.uniform(0, 0.14)
        turn = np.array([(np.sin(angle), np.cos(angle)), (np.cos(angle), -np.sin(angle))])
        canvas.polygon(place + lens * (reach, 0.5 * reach) @ turn, hsv(hue, 0.95, 0.95))
        canvas.line(place + np.outer((-1.35, 0.6), turn[0]) * reach, 4, hsv(hue, 0.9, 0.45))
    return canvas.over(draw.tone(image, 0.6, (1, 0.86, 0.62), (0.06, 0.03, 0)))
