"""The pocket world's effects: exact operations that stand for what twelve effect LoRAs were trained to do.

Most are one-to-many: places, palettes and strokes are drawn at random inside an effect, so that its truth
is a distribution and a sampler that takes too few steps shows it. Features are coarse on purpose (cells of
14 pixels and more, lines of 4 and more), since a token of the pocket model covers 16 pixels. Four pairs of
teacher prompts differ in one word ("this" and "that"): on their own they cannot tell the effects of a pair
apart, which is what tags are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import draw, patterns
from .draw import Apply, Canvas, FloatImage, at_half_size, blur, hsv, luma, mix, rgb

Kind = Literal["colour", "structural", "one-to-many"]
Subject = Literal["luma", "edges", "inverse", "mirror"]


@dataclass(frozen=True)
class PocketEffect:
    """One effect.

    `kind` says what makes it hard: "colour" is a map of each pixel, "structural" changes shapes in one way,
    "one-to-many" draws places, palettes or strokes at random. `subject` says how the source still shows:
    "luma" by its coarse brightness, "edges" by its contours, "inverse" by its coarse brightness with dark and
    light swapped, "mirror" by the coarse brightness of its upper half, below which that half is mirrored.
    `apply` maps a source (H,W,3) float32 in [0,1] to a result alike and is deterministic given the generator.
    """

    name: str
    title: str
    category: str
    teacher_prompt: str
    kind: Kind
    subject: Subject
    apply: Apply


EFFECTS: dict[str, PocketEffect] = {}
"""All effects by name, in the order of the catalogue."""


def effect(
    title: str, category: str, teacher_prompt: str, kind: Kind, subject: Subject
) -> Callable[[Apply], Apply]:
    """Register a function as the effect of the same name."""

    def register(apply: Apply) -> Apply:
        name = apply.__name__
        EFFECTS[name] = PocketEffect(name, title, category, teacher_prompt, kind, subject, apply)
        return apply

    return register


# -- colour -------------------------------------------------------------------------------------------


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


# -- drawing ------------------------------------------------------------------------------------------


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


@effect("Neon lights", "light", "draw the picture as glowing neon tubes in the dark", "one-to-many", "edges")
@at_half_size
def neon(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Glowing contours in the dark; their hues run between two random ones across the picture."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    angle, hue = rng.uniform(0, 2 * np.pi), rng.random()
    ramp = ((np.cos(angle) * (y - size / 2) + np.sin(angle) * (x - size / 2)) / (1.2 * size) + 0.5).astype(
        np.float32
    )
    middle = rng.choice([-1, 1]) * rng.uniform(0.12, 0.2)
    colours = draw.gradient_map(
        ramp, [hsv(hue, 0.9, 1), hsv(hue + middle, 0.9, 1), hsv(hue + 2 * middle, 0.9, 1)]
    )
    tubes = draw.contour(image)
    glow = blur(tubes, 3.5) * np.float32(1.5) + blur(tubes, 9) * np.float32(0.8)
    dark = image * np.float32(0.1) + rgb((0.015, 0.01, 0.05))
    lit = dark + colours * np.minimum(glow, 0.85)[..., None]
    return np.clip(mix(lit, mix(colours, rgb((1, 1, 1)), 0.45), tubes), 0, 1)


# -- rebuilt from pieces ------------------------------------------------------------------------------


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


# -- added things -------------------------------------------------------------------------------------


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


@effect("Bokeh", "light", "add large soft discs of light to the picture", "one-to-many", "luma")
def bokeh(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A dimmed, softened picture behind large glowing discs with bright rims, in neighbouring hues."""
    size = image.shape[0]
    hue = rng.random()
    light = np.zeros((size, size, 3), np.float32)
    y, x = draw.grid(size, size)
    for row, column in draw.scatter(rng, size, int(rng.integers(7, 11)), 28):
        radius, strength = rng.uniform(13, 23), rng.uniform(0.5, 0.85)
        distance = np.hypot(y - row, x - column)
        disc = np.clip(radius - distance + 0.5, 0, 1) * np.where(distance > radius - 4, 1.0, 0.72)
        light = 1 - (1 - light) * (
            1 - (strength * disc)[..., None] * hsv(hue + rng.uniform(-0.09, 0.09), 0.62, 1)
        )
    dim = blur(image, 0.8) * np.float32(0.7)
    return (1 - (1 - dim) * (1 - light)).astype(np.float32)


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
