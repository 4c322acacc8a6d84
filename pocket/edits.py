"""General edits, the lessons of the pocket base: an instruction in words and the exact operation it asks for.

They are primitives (colours, geometry, lines, shapes, cells, light). Many are one-to-many on purpose: the
words leave places, sizes or colours open, so that the base learns to *draw* an answer, not to compute the
only one.
"""

from __future__ import annotations

import numpy as np

from . import edits_drawn, edits_simple, edits_styles
from .edit_kit import FAMILIES, LONGEST, Apply, Edit

__all__ = ["FAMILIES", "LONGEST", "Apply", "Edit", "sample_edit"]

# The families register themselves when their modules are imported.
_MODULES = (edits_simple, edits_drawn, edits_styles)
_NAMES = tuple(FAMILIES)
_SHARES = np.array([FAMILIES[name][0] for name in _NAMES], np.float64)
_SHARES /= _SHARES.sum()


def sample_edit(rng: np.random.Generator) -> Edit:
    """A random general edit; its words have at most `LONGEST` bytes, `apply` keeps shape, dtype and range.

    `apply` draws its own random numbers: the words leave open what they do not name.
    """
    return FAMILIES[_NAMES[int(rng.choice(len(_NAMES), p=_SHARES))]][1](rng)
