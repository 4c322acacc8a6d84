"""The ComfyUI side: one topic a file, thin V3 nodes over `training` and `collection`.

Imported by ComfyUI only (through `collectionlora.comfy_entrypoint`), so ``comfy`` and ``comfy_api`` may be
imported here.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .browser_routes import add_browser_routes
from .collection import CollectionInfo, LoadCollection, SaveCollection
from .contact_sheet import ContactSheet
from .distil import DistilCollection
from .effect import ChooseEffect, EncodeEffect
from .lessons import EffectImages, GeneralImages, Teacher, Teachers
from .pocket import PocketModel
from .routes import add_routes
from .sampling import CollectionSampler, CollectionSigmas
from .settings import DistillationSettings


class CollectionLoraExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        """Serve what the page asks for."""
        add_routes()
        add_browser_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes in the order of the node menu."""
        return [
            LoadCollection,
            ChooseEffect,
            EncodeEffect,
            CollectionSampler,
            CollectionSigmas,
            ContactSheet,
            CollectionInfo,
            SaveCollection,
            PocketModel,
            Teachers,
            Teacher,
            EffectImages,
            GeneralImages,
            DistillationSettings,
            DistilCollection,
        ]
