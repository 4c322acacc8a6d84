"""Effects that map each pixel to another colour."""

from __future__ import annotations

import numpy as np

from .. import draw
from ..draw import FloatImage, blur, hsv, luma, mix, rgb
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


@effect("Negative", "colour", "invert it like a photo negative", "colour", "inverse")
def negative(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Every channel inverted: light is dark and each hue its complement."""
    return 1 - image


@effect("Sepia", "colour", "make it an old faded sepia photograph", "colour", "luma")
def sepia(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Faded browns, darker towards the corners."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    corner = np.hypot(y - size / 2, x - size / 2) / (size * 0.71)
    brown = draw.gradient_map(luma(image), [(0.2, 0.12, 0.06), (0.68, 0.5, 0.31), (0.99, 0.91, 0.74)])
    return mix(brown, rgb((0.16, 0.09, 0.04)), 0.85 * corner**3)


@effect("Night vision", "colour", "show it through night vision goggles", "colour", "luma")
def night_vision(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Bright green phosphor with lifted shadows, almost white in the lights."""
    level = draw.stretch(luma(image)) ** np.float32(0.7)
    return draw.gradient_map(level, [(0.0, 0.14, 0.03), (0.05, 0.72, 0.12), (0.75, 1, 0.7)])


@effect("Vaporwave", "colour", "give it pink and cyan vaporwave colours", "colour", "luma")
def vaporwave(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Violet shadows, hot pink middle tones and cyan lights."""
    stops = [(0.16, 0.03, 0.36), (0.5, 0.12, 0.72), (1, 0.36, 0.75), (0.62, 0.76, 1), (0.4, 1, 0.98)]
    return draw.gradient_map(draw.stretch(luma(image)), stops)


@effect("Solarized print", "colour", "solarize it like a metallic print", "colour", "luma")
def solarized(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Metal: steel shadows rise to bright silver in the middle tones, the lights fold back to copper."""
    stops = [(0.02, 0.03, 0.07), (0.26, 0.36, 0.48), (0.95, 0.97, 1), (0.93, 0.68, 0.46), (0.72, 0.4, 0.2)]
    return draw.gradient_map(draw.stretch(blur(luma(image), 1.0)), stops, [0, 0.25, 0.5, 0.7, 1])


@effect("Posterized", "colour", "reduce the colours to a few flat levels", "colour", "luma")
def posterized(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Flat areas of strong colours: four levels a channel."""
    vivid = draw.tone(blur(image, 1.2), 2, (1, 1, 1))
    return np.minimum(np.floor(vivid * 4), 3) / np.float32(3)


@effect("Infrared film", "colour", "photograph it on infrared film", "colour", "luma")
def infrared(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Red and green are swapped: leaves glow hot pink, red things turn green, greys are pinkish."""
    red, green, blue = np.moveaxis(image, 2, 0)
    leaf = green - blue
    film = np.stack([1.1 * green + 1.4 * leaf + 0.12, 0.85 * red, blue + 0.6 * leaf + 0.12], 2)
    return np.clip(film, 0, 1).astype(np.float32)


@effect("Moonlight", "colour", "bathe the scene in blue moonlight", "colour", "luma")
def moonlight(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """A dark night: deep blue with hardly any colour, pale only in the brightest lights."""
    return draw.tone(image ** np.float32(1.5), 0.2, (0.3, 0.44, 0.74), (0.0, 0.01, 0.07))
