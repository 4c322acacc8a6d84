"""The gallery of Choose Effect as tests see and use it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))
from graphs import APP

from collectionlora.collection.catalogue import HEADER_KEY
from collectionlora.collection.file import read_catalogue
from collectionlora.pocket import WEIGHTS

SHIPPED = WEIGHTS / "collection.safetensors"
NODE = f"{APP}.graph.nodes.find((n) => n.comfyClass === 'CollectionLoraEffect')"
LOADER = f"{APP}.graph.nodes.find((n) => n.comfyClass === 'CollectionLoraLoad')"
SHOW_NODE = (
    (
        "() => { const node = NODE; const canvas = APP.canvas; canvas.ds.scale = 1;"
        " canvas.ds.offset = [200 - node.pos[0], 150 - node.pos[1]]; canvas.setDirty(true, true); }"
    )
    .replace("NODE", NODE)
    .replace("APP", APP)
)
SET_FILE = "(name) => { const w = LOADER.widgets[0]; w.value = name; w.callback(name); }".replace(
    "LOADER", LOADER
)


def chosen(page: Any) -> tuple[str, str]:
    """What the node would be run with."""
    graph = page.evaluate(f"async () => (await {APP}.graphToPrompt()).output")
    (one,) = [one for one in graph.values() if one["class_type"] == "CollectionLoraEffect"]
    return one["inputs"]["effect"], one["inputs"]["then"]


def load(page: Any, file: str) -> None:
    """Choose another file in Load Collection."""
    page.evaluate(SET_FILE, file)
    page.wait_for_timeout(900)


def cell(page: Any, name: str) -> Any:
    return page.locator(f".cl-cell[data-name={name}]")


def shown(page: Any) -> list[str]:
    return [one.get_attribute("data-name") for one in page.locator(".cl-cell:not([hidden])").all()]


def focused(page: Any) -> str | None:
    """The effect that has the focus, or the class of what else has it."""
    name: str | None = page.evaluate(
        "() => document.activeElement.dataset.name ?? document.activeElement.className"
    )
    return name


def changed_catalogue(server: Any, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """The shipped collection under another name, its list of effects changed."""
    content = json.loads(read_catalogue(SHIPPED).to_header()[HEADER_KEY])
    content["effects"] = change(content["effects"])
    path = server.base_directory / "models" / "loras" / name
    save_file(load_file(SHIPPED), path, {"format": "pt", HEADER_KEY: json.dumps(content)})
