"""What the collection browser asks the server for: list the files, change a catalogue, download a file."""

from __future__ import annotations

import asyncio
import base64
import io
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

from aiohttp import web
from PIL import Image, ImageOps
from server import PromptServer

from ..collection.edit import edit_collection
from ..collection.errors import CollectionError
from ..collection.file import read_catalogue
from .files import BUILT_IN, collection_names, collection_path, tell_saved
from .places import new_file

PLAIN = (str, int, float, bool)
FORMATS = ("PNG", "WEBP", "JPEG")
_editing = Lock()


def add_browser_routes() -> None:
    """Routes below /collectionlora."""
    routes = PromptServer.instance.routes

    @routes.get("/collectionlora/collections")
    async def collections(request: Any) -> web.Response:
        """All collection files: file, bytes, effects, steps, base, training, editable."""
        return web.json_response(await asyncio.to_thread(_all))

    @routes.post("/collectionlora/edit")
    async def edit(request: Any) -> web.Response:
        """Change {titles}, {pictures} (picture files in base64) and {drop} of {file}, or of a copy {save_as}.

        Answers {file}, the name of what was written.
        """
        try:
            asked = _asked(await request.json())
            return web.json_response({"file": await asyncio.to_thread(_edit, **asked)})
        except web.HTTPRequestEntityTooLarge:
            error = (
                "the pictures are too large to send at once; save after a few of them, or make them smaller"
            )
            return web.json_response({"error": error}, status=413)
        except (CollectionError, ValueError, OSError) as error:
            return web.json_response({"error": str(error)}, status=400)

    @routes.get("/collectionlora/export")
    async def export(request: Any) -> web.StreamResponse:
        """The file ?file=NAME itself."""
        try:
            path = collection_path(request.query.get("file", ""))
            read_catalogue(path)  # other models are none of this page's business
        except (CollectionError, OSError) as error:
            return web.json_response({"error": str(error)}, status=404)
        name = f"filename=\"collection.safetensors\"; filename*=UTF-8''{quote(path.name, safe='')}"
        headers = {"Content-Disposition": f"attachment; {name}", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=headers)


def _all() -> list[dict[str, Any]]:
    found = []
    for name in collection_names():
        try:
            path = collection_path(name)
            summary = _summary(path, path.stat().st_mtime_ns)
        except (CollectionError, OSError):
            continue  # gone meanwhile, or out of reach for now
        if summary:
            found.append({"file": name, "editable": name != BUILT_IN, **summary})
    return found


@lru_cache(maxsize=8192)
def _summary(path: Path, changed: int) -> dict[str, Any] | None:
    """None for a LoRA without catalogue, remembered too: there are many more of them. Raises CollectionError
    for one that cannot be read now."""
    try:
        catalogue = read_catalogue(path)
    except CollectionError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return None
    base = catalogue.base
    return {
        "bytes": path.stat().st_size,
        "effects": len(catalogue.effects),
        "steps": len(catalogue.sigmas) - 1,
        "base": str(base.get("name") or base["architecture"]),
        "training": {k: str(v)[:200] for k, v in catalogue.training.items() if isinstance(v, PLAIN)},
    }


def _asked(content: Any) -> dict[str, Any]:
    """The request's fields. Raises ValueError naming the one that is wrong."""
    if not isinstance(content, dict) or not isinstance(content.get("file"), str):
        raise ValueError("the request names no file")
    for field, kind in (("titles", dict), ("pictures", dict), ("drop", list), ("save_as", str)):
        value = content.setdefault(field, kind())
        if not isinstance(value, kind):
            raise ValueError(f"{field} is not a {kind.__name__}")
        texts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{field} holds something other than text")
    return {name: content[name] for name in ("file", "titles", "pictures", "drop", "save_as")}


def _edit(file: str, titles: dict[str, str], pictures: dict[str, str], drop: list[str], save_as: str) -> str:
    with _editing:  # of two pages the later one would drop what the earlier has changed
        source = collection_path(file)
        if save_as:
            target, file = new_file(save_as)
        elif file == BUILT_IN:
            raise ValueError("the built-in collection is not changed; give the copy a name")
        else:
            target = source
        edit_collection(
            source, target, titles, {name: _picture(name, text) for name, text in pictures.items()}, drop
        )
        if save_as:
            tell_saved()
        return file


def _picture(name: str, text: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=FORMATS) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # decoders raise many kinds on hostile bytes
        raise ValueError(f"{name}: not a picture; choose a PNG, WebP or JPEG file") from error
