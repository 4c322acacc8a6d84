"""What the page asks the server for."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from server import PromptServer

from ..collection.errors import CollectionError
from .events import story
from .files import catalogue_of


def add_routes() -> None:
    """Routes below /collectionlora."""
    routes = PromptServer.instance.routes

    @routes.get("/collectionlora/catalogue")
    async def catalogue(request: Any) -> web.Response:
        """The effects of ?file=NAME as [{name, title, category, prompt}]."""
        try:
            found = catalogue_of(request.query.get("file", ""))
        except (CollectionError, OSError) as error:
            return web.json_response({"error": str(error)}, status=404)
        keys = ("name", "title", "category", "prompt")
        return web.json_response([{key: getattr(effect, key) for key in keys} for effect in found.effects])

    @routes.get("/collectionlora/run")
    async def run(request: Any) -> web.Response:
        """The story of the run of ?prompt=ID so far."""
        found = story(request.query.get("prompt", ""))
        if found is None:
            return web.json_response({"error": "no distillation of that prompt"}, status=404)
        return web.json_response(found)
