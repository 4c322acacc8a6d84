"""What a row's outputs were recognised as, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ...collection.atomic import atomic_write
from ..drawings import INK, QUIET


def plot_confusion(
    path: Path, matrix: Tensor, effects: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Shares (effects, classes) by matplotlib, which is optional. Blank cells are under half a percent.

    Raises ImportError where matplotlib is missing.
    """
    size = 0.42 if len(effects) > 20 else 0.52
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("this plot needs matplotlib: pip install matplotlib") from error
    sides = (2.2 + size * len(classes), 1.8 + size * len(effects))
    figure = Figure(figsize=sides, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11, color=INK)
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
