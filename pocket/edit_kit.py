"""What the families of general edits share: the edit itself, the list of families, the choice of words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import draw
from .draw import COLOURS, Apply, FloatImage

LONGEST = 110
"""Most bytes an instruction may have."""


@dataclass(frozen=True)
class Edit:
    """The words, and the operation on an (H,W,3) float32 picture in [0,1] with its own random numbers."""

    instruction: str
    apply: Apply


Family = Callable[[np.random.Generator], Edit]
FAMILIES: dict[str, tuple[float, Family]] = {}
"""Weight and maker of each family of edits, by name."""

_NOUNS = ("it", "the picture", "the image", "this picture", "the photo", "this image", "the whole picture")
SIDES = ("left", "right", "top", "bottom")


def family(weight: float) -> Callable[[Family], Family]:
    """Register a maker of edits under its own name with a share of the lessons."""

    def register(maker: Family) -> Family:
        FAMILIES[maker.__name__.strip("_")] = (weight, maker)
        return maker

    return register


def say(rng: np.random.Generator, *forms: str) -> str:
    """One of the wordings, `{it}` replaced by a random word for the picture."""
    return pick(rng, forms).replace("{it}", pick(rng, _NOUNS))


def pick(rng: np.random.Generator, choices: tuple[str, ...] | list[str]) -> str:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]


def clip(image: FloatImage) -> FloatImage:
    """The picture limited to [0,1], float32."""
    return np.clip(image, 0, 1).astype(np.float32)


def colour_name(rng: np.random.Generator, *skip: str) -> str:
    """The name of a random colour of `COLOURS`, but those to skip."""
    return pick(rng, [name for name in COLOURS if name not in skip])


def vivid(rng: np.random.Generator) -> FloatImage:
    """A random saturated colour (3,)."""
    return draw.hsv(rng.random(), rng.uniform(0.6, 1), rng.uniform(0.75, 1))


def half_mask(size: int, side: str) -> FloatImage:
    """1 in the named half, 0 in the other (H,W)."""
    mask = np.zeros((size, size), np.float32)
    half = size // 2
    mask[
        {"left": np.s_[:, :half], "right": np.s_[:, half:], "top": np.s_[:half], "bottom": np.s_[half:]}[side]
    ] = 1
    return mask
