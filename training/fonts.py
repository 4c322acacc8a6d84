"""A font that has the letters: Pillow's own has those of English alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from PIL import ImageFont

FILES = (
    "NotoSansCJK-Regular.ttc",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
)
"""Of Linux, Windows and macOS, those with most letters first. Pillow looks where systems keep fonts."""

Font = ImageFont.FreeTypeFont


def font_for(size: float, texts: Iterable[str]) -> Font:
    """Pillow's own font, or of `FILES` the first that has most of the letters, where it lacks some."""
    return _font_for(size, frozenset("".join(texts)))


@lru_cache(maxsize=64)
def _font_for(size: float, letters: frozenset[str]) -> Font:
    fonts = [_own(size)]
    if _missing(fonts[0], letters):
        for file in FILES:
            try:
                fonts.append(ImageFont.truetype(file, size))
            except OSError:
                continue  # not on this machine
    return min(fonts, key=lambda font: _missing(font, letters))


def _own(size: float) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # as Pillow is always built for pip
    return font


def _missing(font: Font, letters: Iterable[str]) -> int:
    """How many of them are drawn as the box that stands for any letter a font has not."""
    box = bytes(font.getmask("\U0010ffff"))
    return sum(bytes(font.getmask(letter)) == box for letter in letters if not letter.isspace())
