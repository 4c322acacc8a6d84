"""General edits without drawing: colours, detail, lines from edges, geometry."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from . import draw
from .draw import COLOURS, FloatImage, at_half_size, blur, luma, mix, rgb
from .edit_kit import SIDES, Apply, Edit, clip, colour_name, family, half_mask, pick, say

# -- nothing and colour ----------------------------------------------------------------------------------


@family(2)
def _keep(rng: np.random.Generator) -> Edit:
    words = say(
        rng, "keep {it} as it is", "change nothing", "leave {it} alone", "do not change {it}", "same picture"
    )
    return Edit(words, lambda image, _: image)


@family(3)
def _tint(rng: np.random.Generator) -> Edit:
    name = colour_name(rng, "white", "black", "grey")
    strong = rng.random() < 0.5
    amount = 0.75 if strong else 0.4
    how = pick(rng, ("strongly ", "fully ") if strong else ("slightly ", "a bit ", ""))
    words = say(
        rng,
        f"tint {{it}} {how}{name}",
        f"colour {{it}} {how}{name}",
        f"{how}{name} tint",
        f"{how}{name} light",
    )

    def apply(image: FloatImage, _: np.random.Generator) -> FloatImage:
        toned = draw.gradient_map(luma(image), [(0, 0, 0), COLOURS[name], (1, 1, 1)], [0, 0.6, 1])
        return mix(image, toned, amount)

    return Edit(words, apply)


@family(3)
def _tone(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(4))
    if kind == 0:
        words = say(
            rng, "make {it} grayscale", "remove all colour", "turn {it} to gray", "monochrome gray version"
        )
        return Edit(words, lambda image, _: np.repeat(luma(image)[..., None], 3, 2))
    if kind == 1:
        words = say(rng, "old sepia photograph", "make {it} sepia", "sepia tone")
        stops = [(0.12, 0.07, 0.03), (0.6, 0.45, 0.3), (1, 0.95, 0.82)]
        return Edit(words, lambda image, _: draw.gradient_map(luma(image), stops))
    if kind == 2:
        words = say(rng, "invert the colours", "make {it} a negative", "negative of {it}", "invert {it}")
        return Edit(words, lambda image, _: 1 - image)
    words = say(rng, "invert the brightness, keep the hues", "swap dark and light in {it}")
    return Edit(words, lambda image, _: clip(image + (1 - 2 * luma(image))[..., None]))


@family(4)
def _levels(rng: np.random.Generator) -> Edit:
    kind, big = int(rng.integers(6)), rng.random() < 0.5
    how = pick(rng, ("much ", "a lot ", "strongly ")) if big else pick(rng, ("a bit ", "slightly ", ""))
    if kind < 2:
        word = ("darker", "brighter")[kind]
        power = ((1.5, 2.4), (0.7, 0.45))[kind][big]
        return Edit(say(rng, f"make {{it}} {how}{word}", f"{how}{word}"), lambda image, _: image**power)
    word = ("more colourful", "less colourful", "higher in contrast", "lower in contrast")[kind - 2]
    gain = ((1.5, 2.3), (0.6, 0.3), (1.4, 2.2), (0.65, 0.35))[kind - 2][big]
    words = say(rng, f"make {{it}} {how}{word}", f"{how}{word}")
    if kind < 4:
        return Edit(words, lambda image, _: clip(luma(image)[..., None] * (1 - gain) + image * gain))
    return Edit(words, lambda image, _: clip(0.5 + (image - 0.5) * gain))


@family(2)
def _flat_colours(rng: np.random.Generator) -> Edit:
    if rng.random() < 0.5:
        levels = int(rng.integers(2, 6))
        words = say(rng, f"posterize {{it}} to {levels} levels", f"only {levels} levels of each colour")
        return Edit(
            words,
            lambda image, _: (np.minimum(np.floor(image * levels), levels - 1) / (levels - 1)).astype(
                np.float32
            ),
        )
    dark, light = ("black", "white") if rng.random() < 0.5 else (colour_name(rng), colour_name(rng))
    words = say(rng, f"only two colours: {dark} and {light}", f"hard {dark} and {light} picture")

    def apply(image: FloatImage, _: np.random.Generator) -> FloatImage:
        level = draw.stretch(blur(luma(image), 0.8))
        return mix(rgb(COLOURS[dark]), rgb(COLOURS[light]), np.clip((level - 0.5) * 8 + 0.5, 0, 1))

    return Edit(words, apply)


@family(4)
def _gradient_map(rng: np.random.Generator) -> Edit:
    dark = colour_name(rng, "white", "cream")
    light = colour_name(rng, dark, "black")
    words = say(
        rng,
        f"dark parts {dark}, light parts {light}",
        f"map {{it}} from {dark} to {light}",
        f"shadows {dark} and lights {light}",
        f"paint the darkness {dark} and the brightness {light}",
    )
    return Edit(words, lambda image, _: draw.gradient_map(luma(image), [COLOURS[dark], COLOURS[light]]))


@family(2)
def _channels(rng: np.random.Generator) -> Edit:
    if rng.random() < 0.4:
        first, second = rng.choice(3, 2, replace=False)
        order = [0, 1, 2]
        order[first], order[second] = order[second], order[first]
        names = ("red", "green", "blue")
        words = say(
            rng, f"swap {names[first]} and {names[second]}", f"exchange {names[second]} with {names[first]}"
        )
        return Edit(words, lambda image, _: image[..., order])
    words = say(
        rng,
        "change all hues of {it}",
        "shift the colours at random",
        "other colours",
        "recolour {it} at random",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        angle = rng.uniform(0.8, 2 * np.pi - 0.8)
        grey = np.full((3, 3), 1 / 3)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
        turn = grey + np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
        return clip(image @ turn.T.astype(np.float32))

    return Edit(words, apply)


# -- detail ----------------------------------------------------------------------------------------------


@family(4)
def _detail(rng: np.random.Generator) -> Edit:
    kind, big = int(rng.integers(5)), rng.random() < 0.5
    how = pick(rng, ("strong ", "heavy ")) if big else pick(rng, ("soft ", "light ", ""))
    if kind == 0:
        radius = 4.5 if big else 2.0
        return Edit(
            say(rng, f"{how}blur", f"blur {{it}}, {how}blur", f"apply a {how}blur"),
            lambda im, _: blur(im, radius),
        )
    if kind == 1:
        gain = 3.0 if big else 1.5
        words = say(rng, f"{how}sharpening", f"sharpen {{it}}, {how}sharpening")
        return Edit(words, lambda im, _: clip(im + gain * (im - blur(im, 1.5))))
    if kind == 2:
        grain = int(rng.integers(6, 14))
        size = "fine" if grain < 10 else "coarse"
        words = say(rng, f"add {how}{size} grain", f"{how}{size} noise over {{it}}")
        amount = 0.35 if big else 0.2

        def noise(image: FloatImage, rng: np.random.Generator) -> FloatImage:
            cells = -(-image.shape[0] // grain)
            coarse = rng.uniform(-amount, amount, (cells, cells, 1)).astype(np.float32)
            return clip(
                image + np.repeat(np.repeat(coarse, grain, 0), grain, 1)[: image.shape[0], : image.shape[1]]
            )

        return Edit(words, noise)
    if kind == 3:
        side = 7 if big else 5
        words = say(rng, f"{how}smooth paint", f"{how}flat brush look", f"smooth {{it}} into {how}patches")
        return Edit(words, lambda im, _: _median(im, side))
    length = 17 if big else 9
    across = rng.random() < 0.5
    words = say(rng, f"{how}{'sideways' if across else 'up and down'} motion blur",
                 f"smear {{it}} {'sideways' if across else 'up and down'}, {how}smear")  # fmt: skip

    def smear(image: FloatImage, _: np.random.Generator) -> FloatImage:
        axis = int(across)
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (length // 2 + 1, length // 2)
        total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
        steps = np.arange(image.shape[axis])
        return clip((np.take(total, steps + length, axis) - np.take(total, steps, axis)) / length)

    return Edit(words, smear)


def _median(image: FloatImage, side: int) -> FloatImage:
    """Median filter at half size: flat patches with crisp borders, in a millisecond."""
    picture = draw.to_pillow(image)
    half = picture.reduce(2).filter(ImageFilter.MedianFilter(side if side < 6 else 5))
    return draw.from_pillow(half.resize(picture.size, Image.Resampling.BICUBIC))


@family(3)
def _pixelate(rng: np.random.Generator) -> Edit:
    block = int(rng.integers(10, 33))
    words = say(
        rng, f"blocks of {block} pixels", f"pixelate {{it}} by {block}", f"mosaic of {block} pixel squares"
    )
    return Edit(words, lambda image, _: draw.mosaic(image, block))


@family(6)
def _lines(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(5))
    if kind == 4:
        words = say(rng, "emboss {it}", "gray relief of {it}", "carve {it} in gray stone")

        def emboss(image: FloatImage, _: np.random.Generator) -> FloatImage:
            soft = blur(luma(image), 0.8)
            relief = np.roll(soft, (1, 1), (0, 1)) - np.roll(soft, (-1, -1), (0, 1))
            return np.repeat(clip(0.5 - 2.0 * relief)[..., None], 3, 2)

        return Edit(words, at_half_size(emboss))
    line, ground = (
        ("black", "white") if kind == 0 else ("white", "black") if kind == 1 else (colour_name(rng), "")
    )
    if not ground:
        ground = colour_name(rng, line, "cream" if line == "white" else line)
    if kind == 3:
        words = say(rng, f"draw {line} outlines over {{it}}", f"keep {{it}} and trace its edges in {line}")
        outline = at_half_size(lambda image, _: mix(image, rgb(COLOURS[line]), draw.contour(image)))
        return Edit(words, outline)
    words = say(rng, f"{line} outlines on {ground}", f"only the edges, {line} on {ground}",
                 f"{line} edges on a {ground} ground")  # fmt: skip
    drawn = at_half_size(lambda image, _: mix(rgb(COLOURS[ground]), rgb(COLOURS[line]), draw.contour(image)))
    return Edit(words, drawn)


# -- geometry --------------------------------------------------------------------------------------------


@family(6)
def _turn(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(5))
    words = (
        ("flip {it} left to right", "mirror {it} horizontally", "swap left and right"),
        ("flip {it} top to bottom", "mirror {it} vertically", "swap top and bottom"),
        ("turn {it} upside down", "rotate {it} by 180 degrees", "half turn"),
        ("rotate {it} clockwise", "quarter turn to the right", "turn {it} 90 degrees right"),
        ("rotate {it} counterclockwise", "quarter turn to the left", "turn {it} 90 degrees left"),
    )[kind]
    moves: tuple[Apply, ...] = (
        lambda im, _: im[:, ::-1],
        lambda im, _: im[::-1],
        lambda im, _: im[::-1, ::-1],
        lambda im, _: np.rot90(im, -1),
        lambda im, _: np.rot90(im),
    )
    move = moves[kind]
    return Edit(say(rng, *words), lambda im, r: np.ascontiguousarray(move(im, r)))


@family(4)
def _halves_mirrored(rng: np.random.Generator) -> Edit:
    side = pick(rng, SIDES)
    other = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[side]
    words = say(
        rng, f"mirror the {side} half onto the {other}", f"{other} half becomes the mirrored {side} half"
    )

    def apply(image: FloatImage, _: np.random.Generator) -> FloatImage:
        flipped = image[:, ::-1] if side in ("left", "right") else image[::-1]
        return mix(flipped, image, half_mask(image.shape[0], side))

    return Edit(words, apply)


@family(4)
def _move(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(4))
    if kind == 0:
        side = pick(rng, (*SIDES, "centre"))
        words = say(
            rng, f"zoom in on the {side}", f"enlarge the {side}", f"show only the {side}, twice as large"
        )
        place = {
            "left": (0.25, 0),
            "right": (0.25, 0.5),
            "top": (0, 0.25),
            "bottom": (0.5, 0.25),
            "centre": (0.25, 0.25),
        }[side]

        def zoom(image: FloatImage, _: np.random.Generator) -> FloatImage:
            picture = draw.to_pillow(image)
            top, left = place[0] * picture.height, place[1] * picture.width
            box = (left, top, left + picture.width / 2, top + picture.height / 2)
            return draw.from_pillow(picture.resize(picture.size, Image.Resampling.BICUBIC, box=box))

        return Edit(words, zoom)
    if kind == 1:
        name = colour_name(rng)
        portion = float(rng.choice([0.5, 0.65, 0.8]))
        how = {0.5: "small", 0.65: "smaller", 0.8: "slightly smaller"}[portion]
        words = say(rng, f"make {{it}} {how} on a {name} ground", f"{how} picture on {name}")

        def shrink(image: FloatImage, _: np.random.Generator) -> FloatImage:
            size = image.shape[0]
            side = round(size * portion)
            small = draw.from_pillow(draw.to_pillow(image).resize((side, side), Image.Resampling.LANCZOS))
            result = np.empty_like(image)
            result[:] = rgb(COLOURS[name])
            start = (size - side) // 2
            result[start : start + side, start : start + side] = small
            return result

        return Edit(words, shrink)
    if kind == 2:
        side = pick(rng, SIDES)
        words = say(rng, f"shift {{it}} to the {side}, wrap around", f"roll {{it}} by a third to the {side}")
        axis, sign = {"left": (1, -1), "right": (1, 1), "top": (0, -1), "bottom": (0, 1)}[side]
        return Edit(words, lambda im, _: np.roll(im, sign * im.shape[axis] // 3, axis))
    count = int(rng.integers(2, 4))
    words = say(rng, f"repeat {{it}} {count} by {count}", f"tile {{it}} in {count} rows of {count}")

    def tile(image: FloatImage, _: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        side = -(-size // count)
        small = draw.from_pillow(draw.to_pillow(image).resize((side, side), Image.Resampling.BOX))
        return np.tile(small, (count, count, 1))[:size, :size]

    return Edit(words, tile)


@family(3)
def _bend(rng: np.random.Generator) -> Edit:
    kind = int(rng.integers(3))
    forms = (
        ("swirl {it} around the centre", "twist {it}"),
        ("wavy {it}, like water", "bend {it} in waves", "ripples"),
        ("bulge the centre of {it}", "look through a round lens"),
    )[kind]

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        y, x = draw.grid(size, size)
        centre = np.float32((size - 1) / 2)
        dy, dx = y - centre, x - centre
        if kind == 1:
            length, phase = rng.uniform(18, 40), rng.uniform(0, 2 * np.pi, 2)
            reach = np.float32(rng.uniform(2.5, 5))
            moved_y = y + reach * np.sin(x * 2 * np.pi / length + phase[0]).astype(np.float32) + 0 * x
            moved_x = x + reach * np.sin(y * 2 * np.pi / length + phase[1]).astype(np.float32) + 0 * y
            return draw.warp(image, moved_y, moved_x)
        radius = np.sqrt(dy * dy + dx * dx) / np.float32(size / 2)
        if kind == 0:
            angle = np.float32(rng.choice([-1, 1]) * rng.uniform(1.2, 2.4)) * np.clip(1 - radius, 0, 1) ** 2
            cos, sin = np.cos(angle), np.sin(angle)
            return draw.warp(image, centre + dy * cos + dx * sin, centre + dx * cos - dy * sin)
        pull = np.clip(radius, 0, 1) ** np.float32(0.7)
        return draw.warp(image, centre + dy * pull, centre + dx * pull)

    return Edit(say(rng, *forms), apply)
