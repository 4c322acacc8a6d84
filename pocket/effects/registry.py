"""What an effect is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..draw import Apply

if TYPE_CHECKING:
    from ...training.judging.metrics import SubjectKind

Kind = Literal["colour", "structural", "one-to-many"]


@dataclass(frozen=True)
class PocketEffect:
    """One effect.

    `kind` says what makes it hard: "colour" is a map of each pixel, "structural" changes shapes in one way,
    "one-to-many" draws places, palettes or strokes at random. `subject` says how the source still shows:
    "luma" by its coarse brightness, "edges" by its contours, "inverse" by its coarse brightness with dark
    and light swapped, "mirror" by the coarse brightness of its upper half, below which that half is
    mirrored, "quarter" by the coarse brightness of its upper left quarter.
    `apply` maps a source (H,W,3) float32 in [0,1] to a result alike and is deterministic given the generator.
    """

    name: str
    title: str
    category: str
    teacher_prompt: str
    kind: Kind
    subject: SubjectKind
    apply: Apply


EFFECTS: dict[str, PocketEffect] = {}
"""All effects by name, in the order of the catalogue."""


def effect(
    title: str, category: str, teacher_prompt: str, kind: Kind, subject: SubjectKind
) -> Callable[[Apply], Apply]:
    """Register a function as the effect of the same name."""

    def register(apply: Apply) -> Apply:
        name = apply.__name__
        EFFECTS[name] = PocketEffect(name, title, category, teacher_prompt, kind, subject, apply)
        return apply

    return register
