"""Thumbnails of effects: small WebP pictures in the collection's header, as large as there is room for."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageOps

from .errors import CollectionError

SIZES = (192, 128, 96, 64)
"""Heights in pixels, best first; a pair is twice as wide."""

LARGEST = 1024
"""Pixels a side above which a thumbnail is refused: it is decoded in the user's browser, many at a time."""

_QUALITY = 80
_LAST_QUALITIES = (60, 40, 20)
_FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF", "JPEG": b"\xff\xd8\xff"}

Pair = tuple[Image.Image | None, Image.Image]
"""(source, result); a None source gives a thumbnail of the result alone."""


def fit_thumbnails(pairs: Mapping[str, Pair], room: int) -> dict[str, bytes]:
    """WebP thumbnails of all effects that take at most `room` bytes of a header, as large as possible.

    The sizes 192, 128, 96, 64 px are tried in turn, each as a source|result pair, then as the result alone;
    all effects get the same. Pictures are cropped to squares around the centre. At 64 px alone the quality
    drops too.

    Raises CollectionError when not even the smallest fit.
    """
    choices = [(size, pair, _QUALITY) for size in SIZES for pair in (True, False)]
    choices += [(SIZES[-1], False, quality) for quality in _LAST_QUALITIES]
    for size, as_pair, quality in choices:
        used, made = 0, {}
        for name, (source, result) in pairs.items():
            made[name] = _encode(source if as_pair else None, result, size, quality)
            used += header_cost(made[name])
            if used > room:
                break
        else:
            return made
    raise CollectionError(
        f"{len(pairs)} thumbnails do not fit into the {room} bytes left in the header, not even at"
        f" {SIZES[-1]} px; leave them out, or shorten the prompts"
    )


def thumbnail_of(result: Image.Image, like: bytes | None = None) -> bytes:
    """A WebP thumbnail of a result alone, as high as the one it takes the place of (`like`), else 192 px."""
    size = SIZES[0]
    if like is not None:
        with Image.open(io.BytesIO(like), formats=tuple(_FORMATS)) as image:
            size = min(size, image.height)
    return _encode(None, result, size, _QUALITY)


def pair_of(thumbnail: bytes, where: str) -> Pair:
    """The pictures of a thumbnail that `fit_thumbnails` or `thumbnail_of` made.

    Raises CollectionError, saying `where` it is, for one that cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(thumbnail), formats=tuple(_FORMATS)) as image:
            picture = image.convert("RGB")
    except Exception as error:  # decoders raise many kinds on hostile bytes
        raise CollectionError(
            f"{where} is a damaged picture ({error}); give the effect another one"
        ) from error
    width, height = picture.size
    if width != 2 * height:
        return None, picture
    return picture.crop((0, 0, height, height)), picture.crop((height, 0, width, height))


def header_cost(thumbnail: bytes) -> int:
    """Bytes one thumbnail adds to the header: base64, its key, and the quotes escaped in the outer JSON."""
    return 4 * -(-len(thumbnail) // 3) + len(r",\"thumbnail\":\"\"")


def _encode(source: Image.Image | None, result: Image.Image, size: int, quality: int) -> bytes:
    pictures = [result] if source is None else [source, result]
    sheet = Image.new("RGB", (size * len(pictures), size))
    for column, picture in enumerate(pictures):
        tile = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        sheet.paste(tile, (column * size, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def check_thumbnail(data: bytes, where: str) -> None:
    """Raise CollectionError unless `data` is a PNG, WebP or JPEG of sane size; no pixels are decoded."""
    if not isinstance(data, bytes) or not any(data.startswith(magic) for magic in _FORMATS.values()):
        raise CollectionError(f"{where} is neither PNG, WebP nor JPEG; make it again")
    try:
        with Image.open(io.BytesIO(data), formats=tuple(_FORMATS)) as image:
            width, height = image.size
    except Exception as error:  # decoders raise many kinds on hostile bytes
        raise CollectionError(
            f"{where} is a damaged picture ({type(error).__name__}); make it again"
        ) from error
    if max(width, height) > LARGEST:
        raise CollectionError(
            f"{where} is {width} x {height} pixels, more than {LARGEST} a side; make it smaller"
        )


def thumbnail_kind(data: bytes) -> str:
    """What a checked thumbnail is: "png", "webp" or "jpeg"."""
    return next(kind.lower() for kind, magic in _FORMATS.items() if data.startswith(magic))
