"""CollectionLoRA: many effect LoRAs distilled into one few-step LoRA.

This folder is the Python package ``collectionlora`` and, under any folder name, a ComfyUI custom node pack.
Nothing heavy is imported here: ComfyUI calls `comfy_entrypoint` when it wants the nodes, everyone else
imports the sub-package they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import CollectionLoraExtension

WEB_DIRECTORY = "web"


async def comfy_entrypoint() -> CollectionLoraExtension:
    """Return the node pack. Imports late, because ``comfy_api`` exists only inside ComfyUI."""
    from .nodes import CollectionLoraExtension

    return CollectionLoraExtension()
