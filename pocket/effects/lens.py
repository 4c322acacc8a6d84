"""Effects that bend, fold and refract the picture."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import FloatImage, mix, rgb
from .registry import effect


@effect("Kaleidoscope", "lens", "look at it through a kaleidoscope", "structural", "quarter")
def kaleidoscope(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """The upper left quarter, mirrored to the right, and both mirrored below."""
    height, width = image.shape[:2]
    top = np.concatenate([image[: height // 2, : width // 2], image[: height // 2, : width // 2][:, ::-1]], 1)
    return np.concatenate([top, top[::-1]])


@effect("Swirl", "lens", "twist the picture into a whirlpool", "one-to-many", "luma")
def swirl(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Twisted around a random place, to the left or to the right, most in the middle."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    row, column = rng.uniform(0.35, 0.65, 2) * size
    distance = np.hypot(y - row, x - column)
    inside = np.clip(1 - distance / rng.uniform(56, 66), 0, 1)
    angle = np.arctan2(y - row, x - column) + rng.choice([-1, 1]) * 5 * inside**1.5
    return draw.warp(image, row + distance * np.sin(angle), column + distance * np.cos(angle))


@effect("Ripples", "lens", "let water drops send rings across it", "one-to-many", "luma")
def ripple(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Rings around one or two random places bend the picture; their crests are light."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    up, across, crest = np.zeros((3, size, size), np.float32)
    for row, column in draw.scatter(rng, size, int(rng.integers(1, 3)), 50):
        distance = np.hypot(y - row, x - column) + np.float32(1e-3)
        fade = np.clip(1.15 - distance / 85, 0, 1)
        wave = fade * np.sin(distance * 2 * np.pi / 22)
        up, across, crest = (
            up + 6 * wave * (y - row) / distance,
            across + 6 * wave * (x - column) / distance,
            crest + wave,
        )
    bent = draw.tone(draw.warp(image, y + up, x + across), 0.8, (0.75, 0.88, 1))
    return mix(bent, rgb((0.93, 0.98, 1)), 0.75 * np.clip(crest, 0, 1) ** 2)


@effect("Glass blocks", "lens", "see it through a wall of glass bricks", "structural", "luma")
def glass_blocks(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Square glass bricks, each a small lens, light above and dark below, between pale joints."""
    y, x = draw.grid(*image.shape[:2])
    v, u = y % 16 - 7.5, x % 16 - 7.5
    bend = 0.5 + (v**2 + u**2) / 30
    glass = draw.tone(
        draw.warp(image, y - v + v * bend, x - u + u * bend), 1, (0.75, 0.95, 0.95), (0, 0.04, 0.05)
    )
    glass = mix(glass, rgb((1, 1, 1)), np.clip(3.2 - np.hypot(v + 3, u + 3), 0, 0.8))
    glass = mix(glass, rgb((0, 0.1, 0.15)), np.clip((v + u - 5) / 8, 0, 0.6))
    return mix(glass, rgb((0.8, 0.93, 0.92)), np.clip(np.maximum(np.abs(v), np.abs(u)) - 5.5, 0, 1))
