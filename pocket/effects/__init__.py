"""The pocket world's effects: exact operations that stand for what fifty effect LoRAs were trained to do.

One module a category. Most effects are one-to-many: places, palettes and strokes are drawn at random inside
an effect, so that its truth is a distribution and a sampler that takes too few steps shows it. Features are
coarse on purpose (cells of 14 pixels and more, lines of 4 and more), since a token of the pocket model
covers 16 pixels. Four pairs of teacher prompts differ in one word ("this" and "that"): on their own they
cannot tell the effects of a pair apart, which is what tags are for.
"""

from . import colour, drawing, lens, light, paint, party, pieces, weather  # noqa: F401  # they register
from .registry import EFFECTS, Kind, PocketEffect

__all__ = ["EFFECTS", "Kind", "PocketEffect"]
