"""General edits in the manner of a craft: hatching, glow, glass, print, brush, weather, light, water.

They are what a large editing model already knows of drawing and painting when an effect LoRA refines it: the
same means as the effects use, with other shapes, sizes, colours and words.
"""

from __future__ import annotations

import numpy as np

from . import draw, patterns
from .draw import COLOURS, Canvas, FloatImage, at_half_size, blur, hsv, luma, mix, rgb
from .edit_kit import SIDES, Edit, clip, colour_name, family, pick, say, vivid

_PAPERS = ("white", "cream", "yellow", "pink", "cyan")
_INKS = ("black", "navy", "brown", "purple", "teal", "red", "blue", "green")


@family(9)
def _hatching(rng: np.random.Generator) -> Edit:
    slants = {"level": 0.0, "upright": np.pi / 2, "slanted": 0.8, "crossed": 0.8}
    slant = pick(rng, list(slants))
    ink, paper = pick(rng, _INKS), pick(rng, _PAPERS)
    outlined = rng.random() < 0.5
    ending = " and outlines" if outlined else ""
    words = say(
        rng,
        f"shade {{it}} with {slant} {ink} hatching{ending} on {paper}",
        f"{slant} {ink} pencil hatching{ending} on {paper} paper",
        f"{ink} {slant} strokes of a pen{ending} on {paper}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        level = draw.stretch(blur(luma(image), rng.uniform(1.5, 2.5)))
        angle, period = slants[slant] + rng.uniform(-0.25, 0.25), rng.uniform(6.5, 10)
        drawn = patterns.hatching(level, rng, period, angle)
        if slant == "crossed":
            drawn = np.maximum(drawn, patterns.hatching(level + 0.3, rng, period, angle + np.pi / 2))
        if outlined:
            drawn = np.maximum(drawn, draw.contour(image))
        return mix(rgb(COLOURS[paper]), rgb(COLOURS[ink]), drawn * np.float32(rng.uniform(0.7, 1)))

    return Edit(words, at_half_size(apply))


@family(6)
def _outlined(rng: np.random.Generator) -> Edit:
    """Outlines over shades of one colour, with or without a grid."""
    line, ground = ("white", "cyan", "cream", "yellow")[int(rng.integers(4))], pick(rng, _INKS)
    gridded = rng.random() < 0.5
    ending = " with a grid" if gridded else ""
    words = say(
        rng,
        f"{line} outlines on shades of {ground}{ending}",
        f"a plan of {{it}} in {line} lines on {ground} paper{ending}",
        f"trace {{it}} in {line} chalk on a {ground} board{ending}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        base, level = rgb(COLOURS[ground]), draw.stretch(blur(luma(image), 1.5))
        shades = mix(base * np.float32(0.45), mix(base, rgb((1, 1, 1)), 0.25), level)
        if gridded:
            y, x = draw.grid(*image.shape[:2])
            step = int(rng.integers(12, 24))
            up, across = (y + rng.integers(step)) % step, (x + rng.integers(step)) % step
            lines = ((up < 2) | (across < 2)).astype(np.float32)
            shades = mix(shades, rgb(COLOURS[line]), lines * np.float32(0.35))
        return mix(shades, rgb(COLOURS[line]), draw.contour(image))

    return Edit(words, at_half_size(apply))


@family(7)
def _glowing(rng: np.random.Generator) -> Edit:
    name = colour_name(rng, "black", "grey", "navy", "brown") if rng.random() < 0.6 else "rainbow"
    words = say(
        rng,
        f"glowing {name} outlines in the dark",
        f"neon lines in {name}, the rest of {{it}} dark",
        f"darken {{it}}, let its edges shine in {name}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        if name == "rainbow":
            y, x = draw.grid(*image.shape[:2])
            angle = rng.uniform(0, 2 * np.pi)
            ramp = (np.cos(angle) * y + np.sin(angle) * x) / (image.shape[0] * 2.2) + 0.5
            stops = [hsv(rng.random() + turn, 0.9, 1) for turn in (0, 0.2, 0.4)]
            colours = draw.gradient_map(ramp.astype(np.float32), stops)
        else:
            colours = np.broadcast_to(rgb(COLOURS[name]), image.shape)
        tubes = draw.contour(image)
        glow = np.minimum(blur(tubes, 3) * np.float32(1.6) + blur(tubes, 8) * np.float32(0.7), 0.9)
        dark = image * np.float32(rng.uniform(0.05, 0.25))
        return clip(mix(dark + colours * glow[..., None], mix(colours, rgb((1, 1, 1)), 0.5), tubes))

    return Edit(words, at_half_size(apply))


@family(9)
def _glass(rng: np.random.Generator) -> Edit:
    large = rng.random() < 0.5
    size, line = ("large" if large else "small"), pick(rng, ("black", "white", "gold", "brown", "grey"))
    bright = rng.random() < 0.6
    tone = "bright" if bright else "pale"
    words = say(
        rng,
        f"{size} panes of {tone} glass with {line} joints",
        f"rebuild {{it}} from {size} {tone} stones, {line} gaps",
        f"a mosaic of {size} {tone} pieces in {line} mortar",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        points = draw.jittered_points(
            rng, image.shape[0], rng.uniform(14, 18) if large else rng.uniform(9.5, 13)
        )
        index, border = draw.voronoi(points, image.shape[0])
        panes = draw.cell_means(draw.stretch(image), index)
        grey = luma(panes)[..., None]
        panes = clip(grey + (1.6 if bright else 0.5) * (panes - grey) + (0.05 if bright else 0.15))
        shade = rng.uniform(0.85, 1.1, int(index.max()) + 1).astype(np.float32)[index]
        return clip(mix(panes * shade[..., None], rgb(COLOURS[line]), np.clip(2.2 - border, 0, 1)))

    return Edit(words, at_half_size(apply))


@family(9)
def _printed(rng: np.random.Generator) -> Edit:
    ink, paper = pick(rng, _INKS), pick(rng, _PAPERS)
    turned = rng.random() < 0.7
    way = "turned" if turned else "straight"
    words = say(
        rng,
        f"print {{it}} in {way} rows of {ink} dots on {paper}",
        f"{ink} dots on {paper} in {way} rows, larger where it is dark",
        f"newspaper dots, {way}, {ink} on {paper}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        level = draw.stretch(blur(luma(image), 2.0))
        angle = rng.uniform(0.3, 1.3) if turned else 0.0
        dots = patterns.dots(level, rng, rng.uniform(6.5, 9), angle)
        return mix(rgb(COLOURS[paper]), rgb(COLOURS[ink]), dots)

    return Edit(words, at_half_size(apply))


@family(9)
def _painted(rng: np.random.Generator) -> Edit:
    courses = {"level": 0.0, "upright": np.pi / 2, "slanted": 0.8, "swirling": None}
    course = pick(rng, list(courses))
    broad = rng.random() < 0.5
    size = pick(rng, ("broad", "thick") if broad else ("fine", "small"))
    words = say(
        rng,
        f"repaint {{it}} in {size} {course} brush strokes",
        f"{size} {course} dabs of a brush in the colours of {{it}}",
        f"{{it}} painted with {size} {course} strokes",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size, angle = image.shape[0], courses[course]
        canvas, soft = Canvas(size), blur(image, 1.2)
        coarse = ((20.0, 9.0, 9.0), (14.0, 6.5, 7.0)) if broad else ((13.0, 6.0, 6.5), (9.0, 4.0, 5.0))
        phase = rng.uniform(0, 2 * np.pi, 2)
        for length, width, cell in coarse:
            places = draw.jittered_points(rng, size, cell)
            places = places[rng.permutation(len(places))]
            row, column = np.minimum(places, size - 1).astype(np.intp).T
            if angle is None:
                turn = (
                    phase[0]
                    + 1.5 * np.sin(places[:, 0] * 0.04 + phase[1])
                    + 1.5 * np.sin(places[:, 1] * 0.04)
                )
            else:
                turn = angle + rng.normal(0, 0.15, len(places))
            reach = length * rng.uniform(0.4, 0.6, len(places))
            colours = clip(soft[row, column] + rng.uniform(-0.07, 0.07, (len(places), 1)))
            patterns.strokes(canvas, places, turn, reach, width, colours)
        return canvas.over(soft)

    return Edit(words, at_half_size(apply))


@family(8)
def _sprinkled(rng: np.random.Generator) -> Edit:
    """Small things strewn over the picture."""
    things = {"flakes": 0.75, "specks": 1.0, "paper snips": 1.0, "paper strips": 1.0}
    thing = pick(rng, list(things))
    name = pick(rng, ("colourful", "colourful", "white", "gold", "pink", "blue", "red"))
    many = rng.random() < 0.6
    amount = "many" if many else "some"
    words = say(
        rng,
        f"sprinkle {amount} {name} {thing} over {{it}}",
        f"strew {amount} {name} {thing} on {{it}}",
        f"{amount} {name} {thing} falling in {{it}}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        canvas = Canvas(image.shape[0])
        count = int(rng.integers(18, 26) if many else rng.integers(6, 11))
        for y, x in draw.scatter(rng, image.shape[0], count, 15):
            colour = vivid(rng) if name == "colourful" else rgb(COLOURS[name])
            radius, turn = rng.uniform(5, 10), rng.uniform(0, np.pi)
            if thing in ("flakes", "specks"):
                canvas.disc(y, x, radius * 0.8, colour, things[thing])
            elif thing == "paper snips":
                draw.stamp(canvas, pick(rng, ("square", "triangle")), y, x, radius, colour, turn)
            else:
                half = 1.3 * radius * np.array([np.sin(turn), np.cos(turn)])
                middle = np.array([y, x])
                canvas.line(np.stack([middle - half, middle + half]).astype(np.float32), 6, colour)
        return canvas.over(image)

    return Edit(words, apply)


@family(6)
def _discs(rng: np.random.Generator) -> Edit:
    name = colour_name(rng, "black", "grey", "navy", "brown")
    large = rng.random() < 0.5
    size = "large" if large else "small"
    rim = rng.random() < 0.5
    kind = "rings of light" if rim else "discs of light"
    words = say(
        rng,
        f"{size} {name} {kind} in front of {{it}}",
        f"add {size} {kind} in {name}",
        f"{name} lens lights, {size} {kind}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        size = image.shape[0]
        light = np.zeros((size, size, 3), np.float32)
        y, x = draw.grid(size, size)
        for row, column in draw.scatter(rng, size, int(rng.integers(6, 11)), 24):
            radius = rng.uniform(14, 24) if large else rng.uniform(8, 13)
            distance = np.hypot(y - row, x - column)
            disc = np.clip(radius - distance + 0.5, 0, 1)
            if rim:
                disc = disc * np.where(distance > radius - 4, 1.0, 0.45)
            light = 1 - (1 - light) * (1 - (rng.uniform(0.5, 0.9) * disc)[..., None] * rgb(COLOURS[name]))
        dim = blur(image, 0.8) * np.float32(rng.uniform(0.6, 0.9))
        return clip(1 - (1 - dim) * (1 - light))

    return Edit(words, apply)


@family(6)
def _flooded(rng: np.random.Generator) -> Edit:
    side = pick(rng, SIDES)
    name, waves = pick(rng, ("blue", "teal", "purple", "gold", "grey")), rng.random() < 0.6
    surface = "waving" if waves else "still"
    words = say(
        rng,
        f"{surface} {name} water at the {side} mirrors {{it}}",
        f"{surface} {name} reflection of {{it}} at the {side}",
    )

    def apply(image: FloatImage, rng: np.random.Generator) -> FloatImage:
        turns = {"bottom": 0, "right": 3, "top": 2, "left": 1}[side]
        upright = np.rot90(image, turns)
        size = image.shape[0]
        y, x = draw.grid(size, size)
        line = int(size * rng.uniform(0.5, 0.65))
        wave = np.sin((y - line) * 2 * np.pi / rng.uniform(14, 24) + 1.5 * np.sin(x / rng.uniform(14, 24)))
        reach = wave * (np.maximum(y - line, 0) / size * 8 + 1) if waves else 0 * wave
        mirrored = draw.warp(
            np.ascontiguousarray(upright),
            (2 * line - 1 - y + 0.6 * reach).astype(np.float32),
            (x + reach).astype(np.float32),
        )
        wet = mix(mirrored, rgb(COLOURS[name]), 0.35) + (0.06 * wave * waves)[..., None].astype(np.float32)
        mixed = mix(upright, clip(wet), np.broadcast_to(np.clip(y - line + 1, 0, 1), (size, size)))
        return clip(np.ascontiguousarray(np.rot90(mixed, -turns)))

    return Edit(words, apply)


@family(9)
def _palette(rng: np.random.Generator) -> Edit:
    """Brightness through three named colours, or through any palette at all."""
    if rng.random() < 0.35:
        words = say(
            rng, "false colours at random", "any other palette for {it}", "random inks, dark to light"
        )

        def random(image: FloatImage, rng: np.random.Generator) -> FloatImage:
            hues = rng.random() + np.cumsum(rng.uniform(0.15, 0.5, int(rng.integers(2, 5))))
            values = np.linspace(rng.uniform(0, 0.4), 1, len(hues))
            stops = [hsv(hue, rng.uniform(0.5, 1), value) for hue, value in zip(hues, values, strict=True)]
            return draw.gradient_map(draw.stretch(blur(luma(image), 0.8)), stops)

        return Edit(words, random)
    dark = colour_name(rng, "white", "cream", "yellow")
    middle = colour_name(rng, dark, "black", "white")
    light = colour_name(rng, dark, middle, "black", "navy", "brown")
    words = say(
        rng,
        f"false colours from {dark} over {middle} to {light}",
        f"recolour {{it}}: dark {dark}, middle {middle}, light {light}",
        f"a palette of {dark}, {middle} and {light}",
    )

    def named(image: FloatImage, _: np.random.Generator) -> FloatImage:
        stops = [COLOURS[dark], COLOURS[middle], COLOURS[light]]
        return draw.gradient_map(draw.stretch(blur(luma(image), 0.8)), stops)

    return Edit(words, named)
