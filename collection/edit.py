"""Change what a collection says of its effects. The weights stay as they are, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .catalogue import Catalogue
from .file import fitted, load_collection, save_collection
from .tensors import read_header
from .thumbnails import thumbnail_of


def edit_collection(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    titles: Mapping[str, str] | None = None,
    pictures: Mapping[str, Image.Image] | None = None,
    drop: Collection[str] = (),
) -> Catalogue:
    """Write `source` to `target` (which may be the same file) with another catalogue, and return that.

    Args:
        titles: effect name -> what people read. Names, tags and prompts belong to the weights and stay.
        pictures: effect name -> a picture of its result, which becomes the thumbnail.
        drop: effects to leave out of the catalogue. The weights still hold them.

    Metadata that other programs have written are kept.

    Raises CollectionError for an unknown effect, a title that is no plain text, or when nothing would be
    left; the file is then as it was.
    """
    weights, catalogue = load_collection(source)
    titles, pictures = titles or {}, pictures or {}
    for name in (*titles, *pictures, *drop):
        _ = catalogue[name]
    effects = []
    for effect in catalogue.effects:
        if effect.name in drop:
            continue
        thumbnail = effect.thumbnail
        if effect.name in pictures:
            thumbnail = thumbnail_of(pictures[effect.name], thumbnail)
        title = titles.get(effect.name, effect.title)
        effects.append(replace(effect, title=title, thumbnail=thumbnail))
    others = read_header(Path(source)).metadata
    edited = fitted(replace(catalogue, effects=tuple(effects)), weights, others)
    save_collection(target, weights, edited, others)
    return edited
