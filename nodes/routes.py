"""What the page asks the server for."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from server import PromptServer

from ..collection.errors import CollectionError
from ..collection.thumbnails import thumbnail_kind
from .events import find_run
from .files import catalogue_of, collection_path
from .gallery import own_picture, own_pictures


def add_routes() -> None:
    """Routes below /collectionlora."""
    routes = PromptServer.instance.routes

    @routes.get("/collectionlora/catalogue")
    async def catalogue(request: Any) -> web.Response:
        """The effects of ?file=NAME: name, title, category, prompt, and the addresses thumbnail and own."""
        file = request.query.get("file", "")
        try:
            found = catalogue_of(file)
            version = collection_path(file).stat().st_mtime_ns
        except (CollectionError, OSError) as error:
            return web.json_response({"error": str(error)}, status=404)
        keys = ("name", "title", "category", "prompt")
        own, effects = own_pictures(file, found), []
        for effect in found.effects:
            query = urlencode({"file": file, "effect": effect.name, "version": version})
            address = f"/collectionlora/thumbnail?{query}" if effect.thumbnail else None
            mine = None
            if effect.name in own:
                query = urlencode({"file": file, "effect": effect.name, "own": own[effect.name]})
                mine = f"/collectionlora/thumbnail?{query}"
            effects.append({key: getattr(effect, key) for key in keys} | {"thumbnail": address, "own": mine})
        return web.json_response(effects)

    @routes.get("/collectionlora/thumbnail")
    async def thumbnail(request: Any) -> web.Response:
        """The picture of ?file=NAME&effect=NAME; with &own=... the user's own."""
        file = request.query.get("file", "")
        try:
            found = catalogue_of(file)
            effect = found[request.query.get("effect", "")]
        except (CollectionError, OSError) as error:
            return web.json_response({"error": str(error)}, status=404)
        own = own_picture(file, found, effect.name)
        if "own" in request.query and own.is_file():
            return web.FileResponse(own)
        if effect.thumbnail is None:
            return web.json_response({"error": f"{effect.name} has no thumbnail"}, status=404)
        # its address names the file's version, so a browser may keep it
        headers = {"Cache-Control": "private, max-age=31536000", "X-Content-Type-Options": "nosniff"}
        kind = thumbnail_kind(effect.thumbnail)
        return web.Response(body=effect.thumbnail, content_type=f"image/{kind}", headers=headers)

    @routes.get("/collectionlora/run")
    async def run(request: Any) -> web.Response:
        """The story so far of the latest run, or of that of ?prompt=ID, ?node=ID and ?workflow=ID."""
        found = find_run(request.query)
        return _missing() if found is None else web.json_response(found.so_far())

    @routes.get("/collectionlora/preview")
    async def preview(request: Any) -> web.StreamResponse:
        """A picture of the run of ?prompt=ID&node=ID: &picture=source, or of &effect=NAME its target, or what
        the student makes of it after &picture=N cycles."""
        found = find_run(request.query)
        effect, which = request.query.get("effect", ""), request.query.get("picture", "")
        if found is None or (which != "source" and not found.knows(effect)):
            return _missing()
        if which not in ("source", "target"):
            which = f"{int(which):07d}" if which.isdecimal() else ""
        path = found.picture("" if which == "source" else effect, which)
        if not path.is_file():
            return _missing()
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})

    @routes.post("/collectionlora/save")
    async def save(request: Any) -> web.Response:
        """Ask the run of ?prompt=ID&node=ID to write its collection after this cycle."""
        found = find_run(request.query)
        if found is None:
            return _missing()
        found.save_wanted = True
        return web.json_response({})


def _missing() -> web.Response:
    return web.json_response({"error": "no such distillation since ComfyUI was started"}, status=404)
