"""Effects that put things on the picture."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import Canvas, FloatImage, hsv, mix, rgb
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


@effect("Stickers", "party", "put a few big stickers on the picture", "one-to-many", "luma")
def stickers(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large vivid stars, hearts and discs with a thick white rim and a shadow."""
    size = image.shape[0]
    canvas = Canvas(size)
    for y, x in 8 + draw.scatter(rng, size - 16, int(rng.integers(5, 8)), 38):
        kind, turn = ("star", "heart", "circle")[int(rng.integers(3))], rng.uniform(-0.4, 0.4)
        radius = rng.uniform(13, 16) * (0.85 if kind == "circle" else 1.1)
        corners = draw.outline("heart" if kind == "heart" else "star", y, x, radius, turn)
        rim = np.concatenate([corners, corners[:2]])
        for shift, colour, alpha in ((2.5, (0, 0, 0), 0.45), (0, (1, 1, 1), 1)):
            if kind == "circle":
                canvas.disc(y + shift, x + shift, radius + 5, colour, alpha)
            else:
                canvas.polygon(corners + shift, colour, alpha)
                canvas.line(rim + np.float32(shift), 10, colour, alpha)
        draw.stamp(canvas, kind, y, x, radius, hsv(rng.random(), 0.9, 0.95), turn)
    return canvas.over(image)


@effect("Balloons", "party", "let balloons float through the scene", "one-to-many", "luma")
def balloons(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large balloons of any hue with a highlight, a knot and a string, over a slightly paler picture."""
    size = image.shape[0]
    canvas = Canvas(size)
    t = np.linspace(0, 2 * np.pi, 40, dtype=np.float32)
    places = draw.scatter(rng, size, int(rng.integers(5, 8)), 36)
    for y, x in places[places[:, 0].argsort()]:
        hue, radius, sway = rng.random(), rng.uniform(13, 16), rng.choice([-1, 1]) * 3
        string = np.stack([y + radius + 6 * t, x + sway * np.sin(t)], 1)
        canvas.line(string, 4, (1, 1, 1), 0.9)
        canvas.polygon(draw.outline("triangle", y + 1.25 * radius, x, 6), hsv(hue, 0.9, 0.65))
        for shift, part, colour in ((0, 1, hsv(hue, 0.9, 0.65)), (-0.1, 0.85, hsv(hue, 0.85, 0.95))):
            middle, reach = np.array([y, x]) + shift * radius, part * radius * np.array([1.2, 1])
            canvas.polygon(middle + reach * np.stack([np.sin(t), np.cos(t)], 1), colour)
        canvas.disc(y - 0.5 * radius, x - 0.4 * radius, 4, (1, 1, 1))
    return canvas.over(mix(image, rgb((0.85, 0.93, 1)), 0.2))


@effect("Soap bubbles", "party", "blow soap bubbles across the picture", "one-to-many", "luma")
def bubbles(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large clear bubbles: rainbow rims, a white glint, the picture a little brighter inside."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    result, glints = image * np.float32(0.85), Canvas(size)
    rainbow = [hsv(hue, 0.75, 1) for hue in np.linspace(0, 1, 7)]
    for row, column in draw.scatter(rng, size, int(rng.integers(8, 12)), 30):
        radius = rng.uniform(11, 17)
        distance = np.hypot(y - row, x - column)
        around = (np.arctan2(y - row, x - column) / (2 * np.pi) + rng.random()) % 1
        inside, rim = np.clip(radius - distance + 0.5, 0, 1), np.clip(distance - radius + 5.5, 0, 1)
        result = mix(result, rgb((0.95, 1, 1)), 0.3 * inside)
        result = mix(result, draw.gradient_map(around, rainbow), 0.9 * inside * rim)
        glints.disc(row - 0.4 * radius, column - 0.4 * radius, 4, (1, 1, 1))
    return glints.over(result)


@effect("Fireworks", "party", "fill the sky with fireworks", "one-to-many", "luma")
def fireworks(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Large bursts of glowing rays that droop a little, over the picture at night."""
    size = image.shape[0]
    canvas = Canvas(size)
    for y, x in 14 + draw.scatter(rng, size - 28, int(rng.integers(3, 5)), 44) * (0.75, 1):
        hue, radius, t = rng.random(), rng.uniform(22, 30), np.linspace(0.4, 1, 7)[:, None]
        canvas.disc(y, x, 4, hsv(hue, 0.25, 1))
        for angle in np.arange(9) * np.pi / 4.5 + rng.uniform(0, np.pi):
            ray = (y, x) + t * radius * (np.sin(angle), np.cos(angle)) + t**2 * (7, 0)
            canvas.line(ray.astype(np.float32), 4, hsv(hue, 0.85, 1))
            canvas.line(ray[-3:].astype(np.float32), 4, hsv(hue, 0.25, 1))
    return canvas.shine(draw.tone(image, 0.5, (0.42, 0.46, 0.68), (0.0, 0.0, 0.06)), 2.5)
