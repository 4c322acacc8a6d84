"""Sheets of pictures, drawn with Pillow: rows of an effect each, or a grid with names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from .drawings import INK, QUIET
from .fonts import font_for
from .pictures import to_pil

LARGEST_SHEET = 40_000_000
"""Pixels of a grid of pictures above which these are made smaller."""


@dataclass(frozen=True)
class SheetRow:
    """One line of a contact sheet: a name, pictures (3,H,W) in [0,1] or None, a quiet note under the name."""

    name: str
    pictures: Sequence[Tensor | None]
    note: str = ""


def contact_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], title: str = "", note: str = "", cell: int = 160
) -> Image.Image:
    """A labelled sheet of pictures: a row an effect, a column a way of making it.

    columns: headers, one a picture; a line break starts a second, quieter line. Pictures are scaled to `cell`
    pixels. Raises ValueError if a row has not one picture a column.
    """
    for row in rows:
        if len(row.pictures) != len(columns):
            raise ValueError(f"row {row.name!r} has {len(row.pictures)} pictures for {len(columns)} columns")
    columns = [_plain(header) for header in columns]
    rows = [SheetRow(_plain(row.name), row.pictures, _plain(row.note)) for row in rows]
    title, note = _plain(title), _plain(note)
    gap, margin = max(4, cell // 24), max(16, cell // 7)
    written = [title, note, *columns, *(text for row in rows for text in (row.name, row.note))]
    big, plain, small = (font_for(size, written) for size in (cell // 6, cell // 9, cell // 12))
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    widest = max((scratch.textlength(row.name, plain) for row in rows), default=0)
    label = math.ceil(min(max(widest, cell * 0.75), cell * 1.6)) + gap * 3
    head = margin + (cell // 4 if title else 0) + (_height(scratch, note, small) + gap if note else 0)
    names = max((_height(scratch, header, plain) for header in columns), default=0) + gap * 2
    width = margin * 2 + label + len(columns) * (cell + gap) - gap
    sheet = Image.new("RGB", (width, head + names + len(rows) * (cell + gap) + margin - gap), "#fbfbf9")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, margin), title, INK, big)
    if note:
        draw.multiline_text((margin, margin + (cell // 4 if title else 0)), note, QUIET, small)
    for index, header in enumerate(columns):
        middle = margin + label + index * (cell + gap) + cell / 2
        first, *rest = header.split("\n")
        base = head + names - gap
        if rest:
            draw.text((middle, base), "\n".join(rest), QUIET, small, "md", align="center")
            base -= _height(draw, "\n".join(rest), small) + gap // 2
        draw.text((middle, base), first, INK, plain, "md")
    for line, row in enumerate(rows):
        y = head + names + line * (cell + gap)
        name, extra = (
            _wrap(draw, row.name, plain, label - gap * 2),
            _wrap(draw, row.note, small, label - gap * 2),
        )
        rise = (_height(draw, name, plain) + (_height(draw, extra, small) + gap if extra else 0)) / 2
        draw.multiline_text((margin, y + cell / 2 - rise), name, INK, plain)
        if extra:
            draw.multiline_text(
                (margin, y + cell / 2 - rise + _height(draw, name, plain) + gap), extra, QUIET, small
            )
        for index, picture in enumerate(row.pictures):
            x = margin + label + index * (cell + gap)
            if picture is None:
                draw.rectangle((x, y, x + cell - 1, y + cell - 1), "#efefeb")
            else:
                sheet.paste(_picture(picture, cell), (x, y))
    return sheet


def named_grid(names: Sequence[str], pictures: Sequence[Tensor]) -> Image.Image:
    """Pictures (3,H,W) of one size, each above its name, in about as many columns as rows. They are made
    smaller where all would have more than `LARGEST_SHEET` pixels."""
    if len(names) != len(pictures) or not names:
        raise ValueError(f"{len(names)} names for {len(pictures)} pictures")
    names = [_plain(name) for name in names]
    height, width = pictures[0].shape[-2:]
    # small pictures are enlarged, or no name would fit below them
    scale = max(1, round(192 / max(height, width)))
    scale *= min(1, (LARGEST_SHEET / (len(names) * width * height * scale**2)) ** 0.5)
    width, height = round(width * scale), round(height * scale)
    columns = math.ceil((len(names) * height / width) ** 0.5)
    gap = max(4, width // 32)
    font = font_for(max(12, width // 14), names)
    label = round(font.size * 1.8)
    rows = math.ceil(len(names) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label) + gap), "#fbfbf9")
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + label)
        sheet.paste(to_pil(picture).resize((width, height), Image.Resampling.LANCZOS), (x, y))
        text = name
        while text and draw.textlength(text, font) > width:
            text = text[:-1]
        draw.text((x + width / 2, y + height + label / 2 - gap / 2), text, INK, font, "mm")
    return sheet


def _picture(image: Tensor, cell: int) -> Image.Image:
    picture = to_pil(image.float())
    return picture if picture.size == (cell, cell) else picture.resize((cell, cell), Image.Resampling.LANCZOS)


def _plain(text: str) -> str:
    """Signs that Pillow's own font lacks, in those it has."""
    return text.translate({ord("×"): "x", ord("→"): "to", ord("⊕"): "+", ord("≥"): "at least"})


def _height(draw: ImageDraw.ImageDraw, text: str, font: Any) -> int:
    """Pixels that lines of text take, the same whichever letters they hold."""
    if not text:
        return 0
    return math.ceil(draw.multiline_textbbox((0, 0), "\n".join("Xg" for _ in text.split("\n")), font)[3])


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
