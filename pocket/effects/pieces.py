"""Effects that rebuild the picture from pieces."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .. import draw, patterns
from ..draw import FloatImage, at_half_size, blur, hsv, luma, mix, rgb
from .registry import effect

_GAME = np.array(
    [
        (0, 0, 0),
        (29, 43, 83),
        (126, 37, 83),
        (0, 135, 81),
        (171, 82, 54),
        (95, 87, 79),
        (194, 195, 199),
        (255, 241, 232),
        (255, 0, 77),
        (255, 163, 0),
        (255, 236, 39),
        (0, 228, 54),
        (41, 173, 255),
        (131, 118, 156),
        (255, 119, 168),
        (255, 204, 170),
    ],
    np.float32,
) / np.float32(255)


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


@effect("Pixel art", "pieces", "turn the picture into retro pixel art", "structural", "luma")
def pixel_art(image: FloatImage, _: np.random.Generator) -> FloatImage:
    """Blocks of eight pixels in the vivid colours of an old game."""
    blocks = draw.mosaic(draw.tone(draw.stretch(image), 1.5, (1, 1, 1)), 8)[::8, ::8]
    nearest = ((blocks[..., None, :] - _GAME) ** 2).sum(3).argmin(2)
    return np.repeat(np.repeat(_GAME[nearest], 8, 0), 8, 1)[: image.shape[0], : image.shape[1]]


@effect("Mosaic tiles", "pieces", "lay it out in square mosaic tiles", "one-to-many", "luma")
def mosaic_tiles(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Square tiles, each a little turned and lighter or darker, in pale grout."""
    y, x = draw.grid(*image.shape[:2])
    (down, right), count = rng.uniform(0, 16, 2), image.shape[0] // 16 + 1
    index = ((y + down) // 16 * count + (x + right) // 16).astype(np.intp)
    turn = rng.uniform(-0.14, 0.14, count * count)[index]
    v, u = (y + down) % 16 - 8, (x + right) % 16 - 8
    side = np.maximum(
        np.abs(v * np.cos(turn) - u * np.sin(turn)), np.abs(v * np.sin(turn) + u * np.cos(turn))
    )
    shade = rng.uniform(0.65, 1.3, count * count)[index]
    tiles = np.clip(draw.cell_means(image, index) * shade[..., None], 0, 1).astype(np.float32)
    return mix(rgb((0.93, 0.9, 0.83)), tiles, np.clip(6.7 - side, 0, 1))


@effect("Low poly", "pieces", "fold it from flat low poly triangles", "one-to-many", "luma")
def low_poly(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Flat triangles of a random mesh, each a little lighter or darker."""
    size, cell = image.shape[0], 24
    corners = draw.jittered_points(rng, size + 2 * cell, cell, 0.7)[:, ::-1] - cell
    count = int(np.sqrt(len(corners)))
    picture = Image.new("I", (size, size))
    pen = ImageDraw.Draw(picture)
    for square in range(count * (count - 1) - 1):
        if square % count < count - 1:
            a, b, c, d = square, square + 1, square + count, square + count + 1
            for part, triangle in enumerate(((a, b, c), (b, c, d)) if square % 2 else ((a, b, d), (a, c, d))):
                pen.polygon([tuple(corners[i].tolist()) for i in triangle], fill=2 * square + part)
    index = np.asarray(picture, np.intp)
    shade = rng.uniform(0.8, 1.25, 2 * len(corners)).astype(np.float32)[index]
    return np.clip(draw.cell_means(image, index) * shade[..., None], 0, 1)


@effect("Honeycomb", "pieces", "fill a golden honeycomb with the picture", "one-to-many", "luma")
def honeycomb(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Six-sided cells at a random place, in amber shades of the picture, between gold walls."""
    size, cell = image.shape[0], 22
    row, column = np.meshgrid(np.arange(-1, 8), np.arange(-1, 8), indexing="ij")
    lattice = np.stack([row * np.sqrt(3) / 2, column + row % 2 / 2], -1).reshape(-1, 2) * cell
    index, border = draw.voronoi((lattice + rng.uniform(-1, 1, 2) * cell / 2).astype(np.float32), size)
    colours = draw.cell_means(draw.stretch(image), index)
    shade = rng.uniform(-0.15, 0.15, len(lattice)).astype(np.float32)[index]
    amber = draw.gradient_map(luma(colours) + shade, [(0.2, 0.07, 0.0), (0.8, 0.4, 0.02), (1, 0.86, 0.4)])
    return mix(mix(colours, amber, 0.75), rgb((1, 0.8, 0.15)), np.clip(2.7 - border, 0, 1))


@effect("Broken mirror", "pieces", "shatter the picture like a mirror", "one-to-many", "luma")
def shards(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """A few large shards: each shows the picture shifted and lighter or darker; white cracks between."""
    size = image.shape[0]
    y, x = draw.grid(size, size)
    index, border = draw.voronoi(draw.scatter(rng, size, 10, 24), size)
    angle, reach = rng.uniform(0, 2 * np.pi, 10), rng.uniform(4, 8, 10)
    pieces = draw.warp(image, y + (reach * np.sin(angle))[index], x + (reach * np.cos(angle))[index])
    pieces = np.clip(pieces * rng.uniform(0.7, 1.25, 10)[index][..., None], 0, 1).astype(np.float32)
    return mix(pieces, rgb((0.95, 0.98, 1)), np.clip(2.6 - border, 0, 1))


@effect("Paper cut", "pieces", "cut and stack it from layers of coloured paper", "one-to-many", "luma")
def paper_cut(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Four or five layers of paper of one hue, the lighter ones on top, each with a soft shadow below."""
    layers, hue = int(rng.integers(4, 6)), rng.random()
    level = draw.stretch(blur(luma(image), 3.5))
    result = np.broadcast_to(hsv(hue, 0.9, 0.3), image.shape)
    for part in np.arange(1, layers) / layers:
        sheet = np.clip((level - part) * 25 + 0.5, 0, 1)
        result = mix(result, rgb((0, 0, 0)), 0.6 * blur(np.roll(sheet, (4, 4), (0, 1)), 3))
        result = mix(result, hsv(hue + 0.1 * part, 0.95 - 0.85 * part, 0.3 + 0.75 * part), sheet)
    return result
