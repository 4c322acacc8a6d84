"""The pack inside a running ComfyUI server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectionlora.collection.catalogue import Catalogue

ROOT = Path(__file__).resolve().parents[2]


def test_the_pack_is_imported_without_a_complaint(server: Any) -> None:
    start = server.log.partition("To see the GUI go to")[0]
    about_the_pack = [line for line in start.splitlines() if server.pack.name in line]
    # core names a pack once, in its table of import times, and again only to say what went wrong
    assert len(about_the_pack) == 1, server.log
    assert "seconds: " in about_the_pack[0]
    assert "IMPORT FAILED" not in about_the_pack[0]


def test_every_node_explains_itself(server: Any) -> None:
    found = server.get("/object_info")
    ours = {name: node for name, node in found.items() if name.startswith("CollectionLora")}
    assert len(ours) == 15
    for name, node in ours.items():
        assert node["category"].startswith("CollectionLoRA")
        assert node["description"]
        assert node["search_aliases"], name
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key}"
        assert all(node["output_tooltips"]), name
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {node['display_name']}\n")
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == ours.keys()


def test_every_node_speaks_chinese_too(server: Any) -> None:
    ours = {name: n for name, n in server.get("/object_info").items() if name.startswith("CollectionLora")}
    spoken = server.get("/i18n")["zh"]["nodeDefs"]
    for name, node in ours.items():
        inputs = [*node["input"].get("required", {}), *node["input"].get("optional", {})]
        assert list(spoken[name]["inputs"]) == inputs, name
        assert all(one["tooltip"] and one["name"] for one in spoken[name]["inputs"].values())
        assert len(spoken[name]["outputs"]) == len(node["output"])
        assert all(one["tooltip"] for one in spoken[name]["outputs"].values())
        page = (ROOT / "web" / "docs" / name / "zh.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {spoken[name]['display_name']}\n")


def test_a_collection_is_offered_by_the_stock_loader_and_shows_its_catalogue(
    server: Any, collection_file: Path, catalogue: Catalogue
) -> None:
    shutil.copy(collection_file, server.base_directory / "models" / "loras" / "pocket.safetensors")
    loader = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]
    assert "pocket.safetensors" in json.dumps(loader["input"]["required"]["lora_name"])
    header = server.get("/view_metadata/loras?filename=pocket.safetensors")
    assert Catalogue.from_header(header) == catalogue


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_no_file_is_opened_at_the_start_or_for_a_list(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.safetensors")  # whoever opens it waits for ever
    server = start_server(tmp_path)
    loaders = server.get("/object_info/CollectionLoraLoad")
    assert "pipe.safetensors" in json.dumps(loaders)
    assert server.get("/collectionlora/catalogue?file=pocket+(built+in)")
