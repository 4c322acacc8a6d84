"""Pictures of a run: losses, confusion, prompt similarity (matplotlib, optional), contact sheets (Pillow)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ..collection.atomic import atomic_write
from .fonts import font_for
from .pictures import to_pil
from .prompting import largest_pair, mean_pair

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name of a loss term -> (cycles, values); NaN where a step was skipped."""

# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#22262b"
QUIET = "#6b7480"
SMOOTH_OVER = 40
"""The thick line of a loss averages over a window of 1/40 of the run, at least 5 points."""
LARGEST_SHEET = 40_000_000
"""Pixels of a grid of pictures above which these are made smaller."""


def plot_losses(path: Path, terms: Series) -> None:
    """Losses over cycles, a panel for each term.

    Thin lines are the values, thick lines their running mean. Raises ImportError if matplotlib is missing.
    """
    columns = max(min(len(terms), 4), 1)
    rows = math.ceil(len(terms) / columns)
    figure = _figure(3.3 * columns, 0.5 + 2.5 * rows, "")
    grid = figure.add_gridspec(rows, columns)
    for index, (name, line) in enumerate(terms.items()):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _curve(axes, line, COLOURS[index % len(COLOURS)])
        _dress(axes, name)
    figure.supxlabel("cycle", fontsize=9, color=QUIET)
    _save(figure, path)


def plot_confusion(
    path: Path, matrix: Tensor, effects: Sequence[str], classes: Sequence[str], title: str = ""
) -> None:
    """Shares (effects, classes): what outputs were recognised as. Blank cells are under half a percent."""
    size = 0.42 if len(effects) > 20 else 0.52
    figure = _figure(2.2 + size * len(classes), 1.8 + size * len(effects), title)
    axes = figure.add_subplot()
    shares = matrix.double().numpy()
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        colour = "white" if share > 0.55 else INK if effects[row] == classes[column] else "#b3261e"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(effects)), effects)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(effects) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e6ea", linewidth=0.8)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("recognised as (% of outputs)", fontsize=9, color=QUIET)
    axes.set_ylabel("asked for", fontsize=9, color=QUIET)
    _save(figure, path)


def plot_similarity(
    path: Path, matrices: Mapping[str, Tensor], names: Sequence[str], title: str = ""
) -> None:
    """Cosine matrices (N,N) side by side, such as `TagReport.matrices()`; each largest pair is framed."""
    side = max(2.6, min(6.0, 0.24 * len(names)))
    figure = _figure(1.6 + (side + 0.25) * len(matrices), side + 1.9, title)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    shown = None
    for index, (axes, (name, matrix)) in enumerate(zip(panels, matrices.items())):
        values = matrix.double().numpy().copy()
        np.fill_diagonal(values, np.nan)
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_facecolor("#d5d9de")
        row, column, worst = largest_pair(matrix)
        for y, x in {(row, column), (column, row)} if len(names) > 1 else ():
            axes.plot(
                [x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5],
                [y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5],
                color=INK,
                linewidth=1.4,
            )
        axes.set_title(f"{name}\nlargest {worst:+.2f}, mean {mean_pair(matrix):+.2f}", fontsize=9, color=INK)
        font = 7 if len(names) <= 30 else 4
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font, color=INK)
        axes.set_yticks(range(len(names)), names if index == 0 else [], fontsize=font, color=INK)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(panels), fraction=0.03, pad=0.02)
        bar.set_label("cosine between student prompts", fontsize=8, color=QUIET)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _curve(axes: Any, line: tuple[Sequence[float], Sequence[float]], colour: str) -> None:
    cycles, values = (np.asarray(part, float) for part in line)
    kept = np.isfinite(values)
    cycles, values = cycles[kept], values[kept]
    if not len(values):
        return
    window = max(5, len(values) // SMOOTH_OVER)
    weight = np.ones(window)
    # "same" pads with zeros, so dividing by the padded count gives shorter windows at both ends.
    mean = np.convolve(values, weight, "same")[: len(values)] if len(values) >= window else values
    count = np.convolve(np.ones(len(values)), weight, "same") if len(values) >= window else 1
    axes.plot(cycles, values, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(cycles, mean / count, color=colour, linewidth=1.6)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.tick_params(labelsize=8, length=2, color=QUIET, labelcolor=QUIET)
    axes.grid(color="#e9ecef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5cbd2")


# -- contact sheets ------------------------------------------------------------------------------------


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
