"""General edits that draw: shapes, overlays, frames, halves, cells, light; often at random."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import draw
from .draw import COLOURS, Canvas, Colour, FloatImage, blur, luma, mix, rgb
from .edit_kit import SIDES, Edit, clip, colour_name, family, half_mask, pick, say, vivid

_COUNTS: dict[str, tuple[int, int]] = {
    "one": (1, 1),
    "two": (2, 2),
    "three": (3, 3),
    "five": (5, 5),
    "a few": (3, 6),
    "many": (9, 16),
}
_RADII: dict[str, tuple[float, float]] = {
    "small": (6, 9),
    "medium": (10, 15),
    "large": (17, 26),
    "": (7, 20),
}


@family(14)
def _shapes(rng: np.random.Generator) -> Edit:
    kind = pick(rng, draw.SHAPES)
    amount = pick(rng, list(_COUNTS))
    size = pick(rng, list(_RADII))
    if amount == "many" and size in ("large", "medium"):
        size = "small"
    name = colour_name(rng) if rng.random() < 0.6 else pick(rng, ("colourful", "random"))
    noun = kind if amount == "one" else kind + "s"
    what = " ".join(w for w in (amount, size, name, noun) if w)
    words = say(rng, f"add {what}", f"draw {what} on {{it}}", f"{what} on {{it}}", f"put {what} anywhere")
    low, high = _COUNTS[amount]
    near, far = _RADII[size]

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        canvas = Canvas(image.shape[0])
        for y, x in draw.scatter(rng, image.shape[0], int(rng.integers(low, high + 1)), (near + far) * 0.9):
            colour = rgb(COLOURS[name]) if name in COLOURS else vivid(rng)
            draw.stamp(canvas, kind, y, x, rng.uniform(near, far), colour, rng.uniform(0, 2 * np.pi))
        return canvas.over(image)

    return Edit(words, apply)


@family(5)
def _strokes(rng: np.random.Generator) -> Edit:
    kind, many = int(rng.integers(3)), rng.random() < 0.5
    name = colour_name(rng) if rng.random() < 0.5 else "colourful"
    much = pick(rng, ("many", "lots of") if many else ("a few", "some"))
    noun = ("straight lines", "curved lines", "short dashes")[kind]
    words = say(
        rng,
        f"add {much} {name} {noun}",
        f"{much} {name} {noun} over {{it}}",
        f"scribble {much} {name} {noun}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        canvas = Canvas(size)
        count = int(rng.integers(10, 18) if many else rng.integers(3, 6)) * (2 if kind == 2 else 1)
        slope = rng.uniform(0, np.pi)
        for _ in range(count):
            colour = rgb(COLOURS[name]) if name in COLOURS else vivid(rng)
            start = rng.uniform(0, size, 2)
            angle = slope + rng.normal(0, 0.15) if kind == 2 else rng.uniform(0, 2 * np.pi)
            reach = rng.uniform(8, 16) if kind == 2 else rng.uniform(30, 130)
            t = np.linspace(-0.5, 0.5, 2 if kind != 1 else 12)[:, None]
            along = np.array([np.sin(angle), np.cos(angle)])
            bend = rng.uniform(-35, 35) if kind == 1 else 0.0
            path = start + t * reach * along + bend * np.cos(3 * t) * along[::-1] * [1, -1]
            canvas.line(path.astype(np.float32), rng.uniform(4, 7), colour)
        return canvas.over(image)

    return Edit(words, apply)


@family(5)
def _overlay(rng: np.random.Generator) -> Edit:
    kind = pick(
        rng,
        (
            "horizontal stripes",
            "vertical stripes",
            "diagonal stripes",
            "grid",
            "checkerboard",
            "dots in rows",
        ),
    )
    name = colour_name(rng)
    wide = rng.random() < 0.5
    period = (32, 48) if wide else (16, 26)
    size = "wide" if wide else "narrow"
    words = say(
        rng,
        f"{size} {name} {kind} over {{it}}",
        f"cover {{it}} with {size} {name} {kind}",
        f"add {size} {name} {kind}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        y, x = draw.grid(*image.shape[:2])
        step = np.float32(rng.uniform(*period))
        shift_y, shift_x = rng.uniform(0, step, 2).astype(np.float32)
        up, across = (y + shift_y) % step / step, (x + shift_x) % step / step
        if kind == "horizontal stripes":
            mask = (up < 0.4) & (x >= 0)
        elif kind == "vertical stripes":
            mask = (across < 0.4) & (y >= 0)
        elif kind == "diagonal stripes":
            mask = (
                (y + np.float32(rng.choice([-1, 1])) * x + 2 * shift_y) / np.float32(1.4) % step
            ) / step < 0.4
        elif kind == "grid":
            mask = (up * step < 4.5) | (across * step < 4.5)
        elif kind == "checkerboard":
            mask = (up < 0.5) ^ (across < 0.5)
        else:
            mask = (up - 0.5) ** 2 + (across - 0.5) ** 2 < 0.1
        return mix(image, rgb(COLOURS[name]), blur(mask.astype(np.float32), 0.5) * np.float32(0.75))

    return Edit(words, apply)


@family(4)
def _frame(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(4))
    name = colour_name(rng)
    thick = rng.random() < 0.5
    size = "thick" if thick else "thin"
    width = 18 if thick else 8
    forms = (
        (f"{size} {name} border", f"frame {{it}} with a {size} {name} border"),
        (f"round window on {name}", f"cut {{it}} to a circle on {name}"),
        (f"darken the corners to {name}", f"{name} vignette", f"fade the rim of {{it}} to {name}"),
        (f"{name} bars above and below", f"film bars in {name}"),
    )[kind]

    def apply(image: FloatImage, _: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        y, x = draw.grid(size, size)
        rim = np.minimum(np.minimum(y, size - 1 - y), np.minimum(x, size - 1 - x))
        radius = np.hypot(y - (size - 1) / 2, x - (size - 1) / 2) / (size / 2)
        if kind == 0:
            mask = np.clip(width - rim, 0, 1)
        elif kind == 1:
            mask = np.clip((radius - 0.92) * size / 2, 0, 1)
        elif kind == 2:
            mask = np.clip((radius - 0.55) / 0.6, 0, 1)
        else:
            mask = np.clip(20 - np.minimum(y, size - 1 - y), 0, 1) + 0 * x
        return mix(image, rgb(COLOURS[name]), mask.astype(np.float32))

    return Edit(say(rng, *forms), apply)


@family(4)
def _half(rng: np.random.Generator) -> Edit:
    side = pick(rng, SIDES)
    kind = int(rng.integers(4))
    name = colour_name(rng)
    what = ("gray", "inverted", f"plain {name}", "blurred")[kind]
    words = say(
        rng, f"make the {side} half {what}", f"{what} {side} half", f"the {side} half of {{it}} {what}"
    )

    def apply(image: FloatImage, _: np.random.Generator) -> FloatImage:
        changed = (
            np.repeat(luma(image)[..., None], 3, 2) if kind == 0
            else 1 - image if kind == 1
            else np.broadcast_to(rgb(COLOURS[name]), image.shape) if kind == 2
            else blur(image, 4)
        )  # fmt: skip
        return mix(image, changed, half_mask(image.shape[0], side))

    return Edit(words, apply)


@family(8)
def _cells(rng: np.random.Generator) -> Edit:
    large = rng.random() < 0.5
    cell = (26, 36) if large else (18, 24)
    size = pick(rng, ("large", "big") if large else ("small", "little"))
    line = colour_name(rng) if rng.random() < 0.3 else ""
    ending = f" with {line} joints" if line else ""
    words = say(rng, f"break {{it}} into {size} flat cells{ending}", f"{size} random polygons{ending}",
                f"{size} flat pieces, low poly{ending}")  # fmt: skip

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        points = draw.jittered_points(rng, image.shape[0], rng.uniform(*cell))
        index, border = draw.voronoi(points, image.shape[0])
        flat = draw.cell_means(image, index)
        return mix(flat, rgb(COLOURS[line]), np.clip(2.6 - border, 0, 1)) if line else flat

    return Edit(words, apply)


@family(5)
def _patches(rng: np.random.Generator) -> Edit:
    """Rectangles or tiles that are changed at random places."""
    kind = int(rng.integers(4))
    name = colour_name(rng)
    forms = (
        (f"cover parts of {{it}} with {name} rectangles", f"random {name} rectangles"),
        ("invert some random squares", "a random patchwork of negatives"),
        ("random coloured glass tiles over {it}", "colour each square of {it} at random"),
        ("remove a round piece of {it}, leave black", "a black hole at a random place"),
    )[kind]

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        result = image.copy()
        if kind == 3:
            canvas = Canvas(size)
            y, x = rng.uniform(20, size - 20, 2)
            canvas.disc(y, x, rng.uniform(14, 30), (0, 0, 0))
            return canvas.over(image)
        if kind == 0:
            for _ in range(int(rng.integers(3, 8))):
                height, width = rng.integers(10, 45, 2)
                top, left = int(rng.integers(0, size - height)), int(rng.integers(0, size - width))
                result[top : top + height, left : left + width] = rgb(COLOURS[name])
            return result
        side = size // 4
        for top in range(0, size, side):
            for left in range(0, size, side):
                patch = result[top : top + side, left : left + side]
                if kind == 2:
                    patch *= 0.35 + 0.65 * vivid(rng)
                elif rng.random() < 0.35:
                    patch[:] = 1 - patch
        return result

    return Edit(say(rng, *forms), apply)


@family(5)
def _clouds(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(3))
    name = colour_name(rng)
    forms = (
        ("clouds of random colours over {it}", "soft colourful haze on {it}"),
        (f"{name} fog in places", f"patches of {name} mist over {{it}}"),
        (f"{name} paint spots on {{it}}", f"blots of {name} ink"),
    )[kind]

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]

        def soft(cells: int, channels: int) -> FloatImage:
            coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            wide = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
            return draw.from_pillow(wide)[..., :channels]

        if kind == 0:
            return mix(image, soft(int(rng.integers(3, 6)), 3), 0.5)
        mask = soft(int(rng.integers(4, 9)), 1)[..., 0]
        mask = np.clip((mask - 0.45) * 2.5, 0, 0.9) if kind == 1 else np.clip((mask - 0.62) * 16, 0, 1)
        return mix(image, rgb(COLOURS[name]), mask)

    return Edit(say(rng, *forms), apply)


@family(5)
def _light(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(4))
    side = pick(rng, SIDES)
    name = colour_name(rng, "black", "grey", "navy", "brown")
    forms = (
        (f"{name} light from the {side}", f"{{it}} lit in {name} from the {side}"),
        ("a spotlight somewhere, the rest dark", "dark {it} with one round light"),
        (f"dark towards the {side}", f"fade to black at the {side}"),
        (f"glowing {name} light spots", f"a few soft {name} lights in {{it}}"),
    )[kind]

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        y, x = draw.grid(size, size)
        colour: Colour = COLOURS[name]
        if kind in (0, 2):
            ramp = {"left": 1 - x / size, "right": x / size, "top": 1 - y / size, "bottom": y / size}[side]
            ramp = np.broadcast_to(ramp, (size, size)).astype(np.float32)
            if kind == 2:
                return image * (1 - np.clip(ramp * 1.3 - 0.2, 0, 1))[..., None]
            return clip(image * 0.75 + 0.65 * ramp[..., None] * rgb(colour))
        if kind == 1:
            cy, cx = rng.uniform(0.2, 0.8, 2) * size
            radius = rng.uniform(0.2, 0.38) * size
            inside = np.clip((radius - np.hypot(y - cy, x - cx)) / 8 + 0.5, 0, 1)
            return clip(image * (0.15 + 0.95 * inside)[..., None])
        glow = np.zeros((size, size), np.float32)
        for cy, cx in draw.scatter(rng, size, int(rng.integers(3, 7)), 25):
            glow += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / np.float32(2 * rng.uniform(6, 12) ** 2))
        return clip(mix(image, rgb(colour), np.minimum(glow, 0.9)))

    return Edit(say(rng, *forms), apply)
