"""Collections on this machine: the LoRA folders, and the one that ships with the pack."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from server import PromptServer

from ..collection.catalogue import Catalogue
from ..collection.errors import CollectionError
from ..collection.file import read_catalogue
from ..collection.peft_config import find_config
from ..pocket import WEIGHTS

BUILT_IN = "pocket (built in)"


def collection_names() -> list[str]:
    """What a list of files offers. Nothing is opened: folders hold thousands of LoRAs."""
    loras = folder_paths.get_filename_list("loras")
    return [BUILT_IN, *(name for name in loras if name.lower().endswith(".safetensors"))]


def collection_path(name: str) -> Path:
    """Raises CollectionError for a name that is not in the folders, or leads out of them."""
    if name == BUILT_IN:
        return WEIGHTS / "collection.safetensors"
    get = folder_paths.get_full_path
    found = get("loras", name) or get("loras", name.replace("\\", "/"))  # a workflow from Windows
    if found is None or not name.lower().endswith(".safetensors"):
        raise CollectionError(f"{name}: no such file in models/loras; put the collection there")
    return Path(found)


def catalogue_of(name: str) -> Catalogue:
    """A file's catalogue, read again only when the file has changed. Raises CollectionError."""
    path = collection_path(name)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> Catalogue:
    return read_catalogue(path)


def tell_saved() -> None:
    """Event `collectionlora.saved`, for every page: there is another file to load."""
    PromptServer.instance.send_sync("collectionlora.saved", {})


def lora_changed(name: str | None) -> Any:
    """Something that differs once a file of models/loras has been written anew, or an adapter_config beside
    it. None comes for a linked input, and is what a name gives that is no file's."""
    path = name and folder_paths.get_full_path("loras", name)
    return path and [file.stat().st_mtime_ns for file in with_config(Path(path))]


def with_config(lora: Path) -> list[Path]:
    """The file, and an adapter_config that may belong to it."""
    return [lora, *filter(None, [find_config(lora)])]
