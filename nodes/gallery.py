"""Galleries on the user's own picture: kept beside the user's settings, never in a file that is shared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ..collection.atomic import atomic_write
from ..collection.catalogue import Catalogue, slug

SIDE = 192


def own_picture(file: str, catalogue: Catalogue, effect: str) -> Path:
    """Where the user's own picture of an effect is, if there is one. `effect` is a name of the catalogue."""
    return _folder(file, catalogue) / f"{effect}.jpg"


def own_pictures(file: str, catalogue: Catalogue) -> dict[str, int]:
    """The effects of which there is one, with the times (ns) they were made."""
    return {path.stem: path.stat().st_mtime_ns for path in _folder(file, catalogue).glob("*.jpg")}


def _folder(file: str, catalogue: Catalogue) -> Path:
    # what was trained anew under its old name makes other pictures
    made = json.dumps([file, catalogue.training], sort_keys=True)
    key = hashlib.sha256(made.encode()).hexdigest()[:8]
    return Path(folder_paths.get_user_directory()) / "collectionlora" / "galleries" / f"{slug(file)}_{key}"


def keep_own_picture(
    file: str, catalogue: Catalogue, effect: str, source: Image.Image, result: Image.Image
) -> None:
    """Keep an effect's picture: source and result side by side, as the collection's own are."""
    pair = Image.new("RGB", (2 * SIDE, SIDE))
    for place, picture in enumerate((source, result)):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        pair.paste(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * SIDE, 0))
    with atomic_write(own_picture(file, catalogue, effect)) as temporary:
        pair.save(temporary, "JPEG", quality=88)


def tell_progress(file: str, done: int, total: int) -> None:
    """Event `collectionlora.gallery`: so many pictures of a file are kept, by the prompt that runs."""
    context = get_executing_context()
    prompt = context.prompt_id if context else ""
    message = {"file": file, "done": done, "total": total, "prompt_id": prompt}
    PromptServer.instance.send_sync("collectionlora.gallery", message)
