"""Drawing helpers of the edits and the effects: (H,W,3) float32 pictures in [0,1], numpy and Pillow only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatImage = NDArray[np.float32]
Points = NDArray[np.float32]
Colour = Sequence[float] | FloatImage
Apply = Callable[[FloatImage, np.random.Generator], FloatImage]
"""An operation on a picture with its own random numbers."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.13, 0.13),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.99, 0.87, 0.15),
    "green": (0.18, 0.68, 0.25),
    "teal": (0.08, 0.58, 0.58),
    "cyan": (0.25, 0.85, 0.95),
    "blue": (0.15, 0.35, 0.90),
    "navy": (0.05, 0.10, 0.38),
    "purple": (0.50, 0.20, 0.75),
    "magenta": (0.90, 0.15, 0.75),
    "pink": (1.00, 0.62, 0.75),
    "brown": (0.45, 0.27, 0.12),
    "gold": (0.85, 0.68, 0.22),
    "cream": (1.00, 0.96, 0.84),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "black": (0.0, 0.0, 0.0),
}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# -- pictures and conversions ------------------------------------------------------------------


def to_pillow(image: FloatImage) -> Image.Image:
    """A Pillow RGB (H,W,3) or L (H,W) picture of a float picture."""
    return Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def from_pillow(picture: Image.Image) -> FloatImage:
    """The float32 array in [0,1] of a Pillow picture."""
    return np.asarray(picture, np.float32) / np.float32(255)


def luma(image: FloatImage) -> FloatImage:
    """Brightness (H,W) of a picture."""
    return image @ _LUMA


def rgb(colour: Colour) -> FloatImage:
    """A colour as a (3,) float32 array."""
    return np.asarray(colour, np.float32)


def mix(first: FloatImage, second: FloatImage, amount: FloatImage | float) -> FloatImage:
    """`first` where `amount` is 0, `second` where it is 1; an (H,W) amount applies to all channels."""
    weight = amount[..., None] if isinstance(amount, np.ndarray) and amount.ndim == 2 else amount
    return np.asarray(first + (second - first) * weight, np.float32)


def blur(image: FloatImage, radius: float) -> FloatImage:
    """Gaussian blur of an (H,W) or (H,W,3) picture; `radius` is the standard deviation in pixels."""
    return from_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(radius)))


def tone(image: FloatImage, saturation: float, tint: Colour, lift: Colour = (0.0, 0.0, 0.0)) -> FloatImage:
    """The picture, its colours made fainter or stronger, each channel scaled by `tint`, raised by `lift`."""
    grey = luma(image)[..., None]
    return np.clip((grey + np.float32(saturation) * (image - grey)) * rgb(tint) + rgb(lift), 0, 1)


def hsv(hue: float, saturation: float, value: float) -> FloatImage:
    """RGB (3,) of a hue (any number; whole turns are equal), a saturation and a value in [0,1]."""
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * wheel)).astype(np.float32)


def gradient_map(level: FloatImage, stops: Sequence[Colour], at: Sequence[float] | None = None) -> FloatImage:
    """Colours (H,W,3) of levels (H,W) in [0,1] along a path of two or more colours."""
    places = np.linspace(0, 1, len(stops)) if at is None else np.asarray(at)
    grid, path = np.linspace(0, 1, 256), np.stack([rgb(s) for s in stops])
    table = np.stack([np.interp(grid, places, path[:, channel]) for channel in range(3)], 1).astype(
        np.float32
    )
    return table[(np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8)]


def stretch(level: FloatImage, low: float = 2, high: float = 98) -> FloatImage:
    """Levels (H,W) rescaled so that the given percentiles become 0 and 1; flat pictures become 0.5."""
    bottom, top = np.percentile(level[::2, ::2], (low, high))
    if top - bottom < 1e-3:
        return np.full_like(level, 0.5)
    return np.clip((level - bottom) / (top - bottom), 0, 1).astype(np.float32)


# -- geometry ----------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def grid(height: int, width: int) -> tuple[FloatImage, FloatImage]:
    """Pixel coordinates y (H,1) and x (1,W); broadcast them."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]


def warp(image: FloatImage, y: FloatImage, x: FloatImage) -> FloatImage:
    """The picture read at real coordinates y, x (H,W), bilinear, mirrored at the border."""
    height, width = image.shape[:2]
    y = (height - 1) - np.abs(np.abs(y) % (2 * height - 2) - (height - 1))
    x = (width - 1) - np.abs(np.abs(x) % (2 * width - 2) - (width - 1))
    top, left = np.minimum(y.astype(np.intp), height - 2), np.minimum(x.astype(np.intp), width - 2)
    down, right = (y - top)[..., None], (x - left)[..., None]
    flat = image.reshape(-1, image.shape[2])
    corner = top * width + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + width] * (1 - right) + flat[corner + width + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


def mosaic(image: FloatImage, block: int) -> FloatImage:
    """Mean colour of square blocks of `block` pixels, the last row and column may be smaller."""
    height, width = image.shape[:2]
    rows, columns = -(-height // block), -(-width // block)
    padded = np.pad(image, ((0, rows * block - height), (0, columns * block - width), (0, 0)), mode="edge")
    means = padded.reshape(rows, block, columns, block, 3).mean((1, 3))
    return np.repeat(np.repeat(means, block, 0), block, 1)[:height, :width].astype(np.float32)


def edges(image: FloatImage, radius: float = 1.0) -> FloatImage:
    """Edge strength (H,W) in [0,1]: blurred Sobel, largest channel, 1 at the 97th percentile."""
    soft = blur(image, radius) if radius > 0 else image
    padded = np.pad(soft, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    strength = np.hypot(rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]).max(2)
    # The floor keeps a flat picture's noise from being stretched into edges.
    return np.clip(strength / max(float(np.percentile(strength[::2, ::2], 97)), 0.25), 0, 1).astype(
        np.float32
    )


def contour(image: FloatImage, radius: float = 1.1, threshold: float = 0.2) -> FloatImage:
    """Line mask (H,W) in [0,1]: crests of the edge strength, two to three pixels wide, thinner where busy."""
    strength = edges(image, radius)
    # Taking the surroundings off leaves the crest of a wide edge and keeps textures from filling up.
    crest = strength - np.float32(0.8) * blur(strength, 2.6)
    return np.clip((crest - threshold) * 5 + 0.5, 0, 1).astype(np.float32)


def at_half_size(apply: Apply) -> Apply:
    """The same operation on a picture of half the sides, enlarged: all that it draws is twice as coarse.

    A token of the pocket model covers 16 pixels, and fine lines within it take a model of that size longer to
    learn than all else together.
    """

    @functools.wraps(apply)
    def larger(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        picture = to_pillow(image)
        drawn = to_pillow(apply(from_pillow(picture.reduce(2)), rng))
        return from_pillow(drawn.resize(picture.size, Image.Resampling.BICUBIC))

    return larger


# -- cells and scatter -------------------------------------------------------------------------


def jittered_points(rng: np.random.Generator, size: int, cell: float, jitter: float = 0.9) -> Points:
    """Points (N,2) as y, x: one at a random place in each square of side `cell`, with a margin outside."""
    count = int(np.ceil(size / cell)) + 1
    y, x = np.meshgrid(np.arange(count), np.arange(count), indexing="ij")
    base = np.stack([y, x], -1).reshape(-1, 2) + rng.uniform(-0.5, 0, 2)
    moved = base + 0.5 + jitter * (rng.random(base.shape) - 0.5)
    return (moved * cell).astype(np.float32)


def voronoi(points: Points, size: int) -> tuple[NDArray[np.intp], FloatImage]:
    """Nearest point of each pixel (H,W), and its distance in pixels (H,W) to the next cell."""
    y, x = grid(size, size)
    pixels = np.stack([np.broadcast_to(y, (size, size)), np.broadcast_to(x, (size, size))], -1).reshape(-1, 2)
    squared = (points**2).sum(1) - 2 * pixels @ points.T
    lines = np.arange(len(pixels))
    first = squared.argmin(1)
    nearest = squared[lines, first]
    squared[lines, first] = np.inf
    second = squared.argmin(1)
    gap = np.linalg.norm(points[second] - points[first], axis=1)
    border = (squared[lines, second] - nearest) / (2 * np.maximum(gap, 1e-3))
    return first.reshape(size, size), border.reshape(size, size).astype(np.float32)


def cell_means(image: FloatImage, index: NDArray[np.intp]) -> FloatImage:
    """Each pixel replaced by the mean colour of its cell."""
    flat, count = index.ravel(), int(index.max()) + 1
    area = np.maximum(np.bincount(flat, minlength=count), 1)
    means = np.stack([np.bincount(flat, image[..., c].ravel(), count) / area for c in range(3)], 1)
    return means.astype(np.float32)[index]


def scatter(rng: np.random.Generator, size: int, count: int, gap: float) -> Points:
    """Up to `count` random places (N,2) as y, x, at least `gap` pixels apart; fewer where room is short."""
    places: list[FloatImage] = []
    for _ in range(count):
        tries = rng.uniform(0, size, (6, 2)).astype(np.float32)
        if places:
            distance = np.linalg.norm(tries[:, None] - np.stack(places), axis=2).min(1)
            best = int(distance.argmax())
            if distance[best] < gap:
                continue
            places.append(tries[best])
        else:
            places.append(tries[0])
    return np.stack(places)


class Canvas:
    """A transparent layer, drawn with Pillow at twice the size for smooth outlines, to lay over a picture."""

    SCALE = 2

    def __init__(self, size: int) -> None:
        self.size = size
        self._layer = Image.new("RGBA", (size * self.SCALE, size * self.SCALE))
        self._draw = ImageDraw.Draw(self._layer)

    @staticmethod
    def _ink(colour: Colour, alpha: float) -> tuple[int, int, int, int]:
        red, green, blue = (round(float(np.clip(c, 0, 1)) * 255) for c in colour)
        return red, green, blue, round(alpha * 255)

    def disc(self, y: float, x: float, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        """A filled disc; pixels of the picture."""
        s = self.SCALE
        box = ((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s)
        self._draw.ellipse(box, fill=self._ink(colour, alpha))

    def ring(
        self, y: float, x: float, radius: float, width: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """A circle's outline of the given width."""
        s = self.SCALE
        box = ((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s)
        self._draw.ellipse(box, outline=self._ink(colour, alpha), width=max(1, round(width * s)))

    def polygon(self, corners: Points, colour: Colour, alpha: float = 1.0) -> None:
        """A filled polygon of corners (N,2) as y, x."""
        self._draw.polygon(
            [(float(x) * self.SCALE, float(y) * self.SCALE) for y, x in corners], self._ink(colour, alpha)
        )

    def line(self, corners: Points, width: float, colour: Colour, alpha: float = 1.0) -> None:
        """A poly-line through points (N,2) as y, x with rounded joints."""
        flat = [(float(x) * self.SCALE, float(y) * self.SCALE) for y, x in corners]
        self._draw.line(flat, self._ink(colour, alpha), max(1, round(width * self.SCALE)), joint="curve")

    def over(self, image: FloatImage) -> FloatImage:
        """The layer laid over a picture (size,size,3)."""
        layer = from_pillow(self._layer.reduce(self.SCALE))
        return mix(image, layer[..., :3], layer[..., 3])

    def shine(self, image: FloatImage, radius: float) -> FloatImage:
        """The layer as light on a picture (size,size,3), with a glow of that radius around what is drawn."""
        light = self.over(np.zeros_like(image))
        light = np.minimum(light + np.float32(1.5) * blur(light, radius), 1)
        return 1 - (1 - image) * (1 - light)


_OUTLINES: dict[str, tuple[int, float]] = {"triangle": (3, 0), "square": (4, np.pi / 4), "hexagon": (6, 0)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "hexagon", "heart")


def outline(kind: str, y: float, x: float, radius: float, turn: float = 0.0) -> Points:
    """Corners (N,2) as y, x of a named shape (all of `SHAPES` but the round ones)."""
    if kind == "star":
        angles = np.arange(10) * np.pi / 5 + turn
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42) * radius
    elif kind == "heart":
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        hx = 16 * np.sin(t) ** 3
        hy = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        cos, sin = np.cos(turn), np.sin(turn)
        return np.stack(
            [y - (hy * cos - hx * sin) * radius / 16, x + (hx * cos + hy * sin) * radius / 16], 1
        ).astype(np.float32)
    else:
        corners, start = _OUTLINES[kind]
        angles, reach = np.arange(corners) * 2 * np.pi / corners + start + turn, np.full(corners, radius)
    return np.stack([y - reach * np.cos(angles), x + reach * np.sin(angles)], 1).astype(np.float32)


def stamp(
    canvas: Canvas, kind: str, y: float, x: float, radius: float, colour: Colour, turn: float = 0.0
) -> None:
    """Draw one of `SHAPES` filled (a ring as an outline) on a canvas."""
    if kind == "circle":
        canvas.disc(y, x, radius, colour)
    elif kind == "ring":
        canvas.ring(y, x, radius, max(2.0, radius * 0.3), colour)
    else:
        canvas.polygon(outline(kind, y, x, radius, turn), colour)
