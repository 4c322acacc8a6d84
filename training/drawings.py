"""Small plots drawn with Pillow alone: losses, and how alike the student prompts are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from .fonts import font_for

# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, QUIET = "#22262b", "#6b7480"
SMOOTH = 40
"""The thick line of a loss averages over a window of 1/40 of the run, at least 5 points."""
PAPER = "#ffffff"
GRID = "#e4e7eb"
SIZE = 720, 420
"""Pixels of the losses."""
MATRIX_SIDE = 560


def draw_losses(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> Image.Image:
    """Losses by term, each {"cycle": [...], "loss": [...]}, over cycles; the scale of losses is logarithmic.

    Thin lines are the values, thick ones their running mean.
    """
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    font = font_for(14, losses)
    left, right, top, bottom = 64, SIZE[0] - 16, 40, SIZE[1] - 36
    drawable = [x for line in losses.values() for x in line["loss"] if x > 0]
    if not drawable:
        draw.text((left, top), "no losses yet", QUIET, font)
        return picture
    last = max(1, *(cycle for line in losses.values() for cycle in line["cycle"]))
    low = math.log10(min(drawable))
    high = max(low + 0.3, math.log10(max(drawable)))

    def place(cycle: float, loss: float) -> tuple[float, float]:
        share = (math.log10(loss) - low) / (high - low)
        return left + (right - left) * cycle / last, bottom - (bottom - top) * share

    for step in range(4):
        loss = 10 ** (low + (high - low) * step / 3)
        y = place(0, loss)[1]
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 8, y), f"{loss:.2g}", QUIET, font, "rm")
    draw.text((left, bottom + 8), "0", QUIET, font)
    draw.text((right, bottom + 8), f"cycle {last + 1}", QUIET, font, "ra")
    x = float(left)
    for index, (term, line) in enumerate(losses.items()):
        colour = COLOURS[index % len(COLOURS)]
        window = max(5, len(line["loss"]) // SMOOTH)
        for values, thick in ((line["loss"], 1), (_running_mean(line["loss"], window), 3)):
            points = [place(c, v) for c, v in zip(line["cycle"], values) if v > 0]
            draw.line(points, colour if thick > 1 else _pale(colour), thick)
        draw.rectangle((x, 15, x + 14, 21), colour)
        draw.text((x + 20, 18), term, INK, font, "lm")
        x += 44 + draw.textlength(term, font)
    return picture


def draw_similarity(tags: Mapping[str, Any]) -> Image.Image:
    """Cosines between student prompts as colours: white is 0, orange 1, blue -1. The diagonal is left out.

    tags: `TagReport.to_json`.
    """
    names, chosen = tags["names"], tags["chosen_tags"]
    title = f"student prompts: largest cosine {chosen['max']:+.2f}, mean {chosen['mean']:+.2f}"
    cell = max(4, MATRIX_SIDE // max(1, len(names)))
    size = cell * len(names)
    font, small = font_for(16, [title]), font_for(max(8, min(13, cell - 2)), names)
    label = math.ceil(max((small.getlength(name) for name in names), default=0)) + 12
    picture = Image.new("RGB", (label + size + 16, 44 + size + 16), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, 14), title, INK, font)
    for row, (name, line) in enumerate(zip(names, chosen["matrix"], strict=True)):
        y = 44 + row * cell
        draw.text((label - 6, y + cell / 2), name, INK, small, "rm")
        for column, cosine in enumerate(line):
            x = label + column * cell
            fill = GRID if row == column else _warm_or_cold(cosine)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill)
    return picture


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    kept: list[float] = []
    means = []
    for value in values:
        kept = [*kept[-(window - 1) :], value] if window > 1 else [value]
        means.append(sum(kept) / len(kept))
    return means


def _pale(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return tuple(round(255 - (255 - part) * 0.35) for part in (red, green, blue))  # type: ignore[return-value]


def _warm_or_cold(cosine: float) -> tuple[int, int, int]:
    share = max(-1.0, min(1.0, cosine))
    end = (213, 94, 0) if share > 0 else (0, 114, 178)
    return tuple(round(255 - (255 - part) * abs(share)) for part in end)  # type: ignore[return-value]
