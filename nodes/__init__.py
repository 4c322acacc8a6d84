"""The ComfyUI side: one topic a file, thin V3 nodes over `training` and `collection`.

Imported by ComfyUI only (through `collectionlora.comfy_entrypoint`), so ``comfy_api`` may be imported here.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class CollectionLoraExtension(ComfyExtension):
    """The pack as ComfyUI sees it. No nodes of its own yet: collections load in core's LoRA loaders."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes in the order of the node menu."""
        return []
