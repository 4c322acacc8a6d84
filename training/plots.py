"""Plots of a run with matplotlib, which is optional: losses, confusion, prompt similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..collection.atomic import atomic_write
from .prompting import largest_pair, mean_pair

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name of a loss term -> (cycles, values); NaN where a step was skipped."""

# Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#22262b"
QUIET = "#6b7480"
SMOOTH = 40
"""The thick line of a loss averages over a window of 1/40 of the run, at least 5 points."""


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


def plot_similarity(path: Path, matrices: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Cosine matrices (N,N) side by side, such as `TagReport.matrices()`; each largest pair is framed."""
    side = max(2.6, min(6.0, 0.24 * len(names)))
    figure = _figure(1.6 + (side + 0.25) * len(matrices), side + 1.9, "")
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
    window = max(5, len(values) // SMOOTH)
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
