"""The gallery drawn on a picture of the user's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from gallery import cell, changed_catalogue, load, shown
from graphs import APP, PICTURES, apply_effect, node


def test_the_gallery_is_drawn_on_the_users_picture(picker: Any, server: Any, errors: list[str]) -> None:
    shutil.rmtree(server.base_directory / "user" / "collectionlora" / "galleries", ignore_errors=True)
    changed_catalogue(server, "mine.safetensors", lambda effects: effects[:3])
    load(picker, "mine.safetensors")
    names = shown(picker)
    assert len(names) == 3
    assert not picker.locator(".cl-mine").is_visible()
    use = picker.get_by_role("button", name="use my image")
    use.focus()
    with picker.expect_file_chooser() as chooser:
        picker.keyboard.press("Enter")
    chooser.value.set_files(PICTURES[1])
    picker.locator(".cl-news").filter(has_text="Drawn on your picture.").wait_for(timeout=120_000)
    picker.locator(".cl-cell img[src*='own=']").nth(2).wait_for()
    loaded = "(images) => images.every((one) => one.complete && one.naturalWidth === 2 * one.naturalHeight)"
    picker.wait_for_timeout(500)
    assert picker.locator(".cl-cell img").evaluate_all(loaded)
    assert (server.base_directory / "input" / PICTURES[1].name).is_file()
    assert not any("galleries" in str(path) for path in (server.base_directory / "models").rglob("*"))
    assert errors == []


def test_the_gallery_says_what_it_needs_for_the_users_picture(picker: Any) -> None:
    picker.evaluate(
        f"() => {{ const graph = {APP}.graph;"
        " graph.remove(graph.nodes.find((n) => n.comfyClass === 'CollectionLoraEncode')); }"
    )
    with picker.expect_file_chooser() as chooser:
        picker.locator(".cl-use").click()
    chooser.value.set_files(PICTURES[1])
    picker.locator(".cl-news").filter(has_text="Connect Encode Effect").wait_for()


def test_the_gallery_can_show_the_users_own_picture(picker: Any, server: Any) -> None:
    graph = apply_effect("example.png", "sketch")
    kept = {key: graph[key] for key in ("pocket", "load", "picture")}
    kept["sheet"] = node(
        "CollectionLoraContactSheet",
        model=["load", 0],
        clip=["pocket", 1],
        vae=["pocket", 2],
        image=["picture", 0],
        collection=["load", 1],
        effects="sketch, neon",
        seed=0,
        steps=1,
        long_side=128,
        shape="square",
        for_gallery=True,
    )
    kept["show"] = node("PreviewImage", images=["sheet", 0])
    server.run(kept)
    load(picker, "pocket (built in)")
    before = cell(picker, "sketch").locator("img").get_attribute("src")
    picker.locator(".cl-mine").click()
    picker.wait_for_timeout(500)
    own = cell(picker, "sketch").locator("img")
    assert own.get_attribute("src") != before
    assert own.evaluate("(image) => image.complete && image.naturalWidth === 2 * image.naturalHeight")
    assert "own=" not in cell(picker, "thermal").locator("img").get_attribute("src")
    assert not any("galleries" in str(path) for path in (server.base_directory / "models").rglob("*"))
