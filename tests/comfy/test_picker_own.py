"""The gallery drawn on a picture of the user's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from gallery import cell, changed_catalogue, load, shown
from graphs import APP, PICTURES, apply_effect, node

SAMPLER = f"{APP}.graph.nodes.find((n) => n.comfyClass === 'CollectionLoraSampler')"


def test_the_gallery_is_drawn_on_the_users_picture(picker: Any, server: Any) -> None:
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
    set_sampler = "(node) => Object.assign(node.widgets.find((w) => w.name === 'seed'), { value: 7 })"
    picker.evaluate(f"() => ({set_sampler})({SAMPLER})")
    with picker.expect_request(lambda request: request.url.endswith("/prompt")) as asked:
        chooser.value.set_files(PICTURES[1])
    sheet = asked.value.post_data_json["prompt"]["collectionlora_sheet"]["inputs"]
    assert (sheet["seed"], sheet["steps"]) == (7, 8)  # as the graph's own sampler
    picker.locator(".cl-news").filter(has_text="Drawn on your picture.").wait_for(timeout=120_000)
    picker.locator(".cl-cell img[src*='own=']").nth(2).wait_for()
    loaded = "(images) => images.every((one) => one.complete && one.naturalWidth === 2 * one.naturalHeight)"
    picker.wait_for_timeout(500)
    assert picker.locator(".cl-cell img").evaluate_all(loaded)
    assert (server.base_directory / "input" / PICTURES[1].name).is_file()
    assert not any("galleries" in str(path) for path in (server.base_directory / "models").rglob("*"))


def test_a_drawing_that_is_stopped_or_taken_from_the_queue_says_so(picker: Any, server: Any) -> None:
    changed_catalogue(server, "stopped.safetensors", lambda effects: effects)
    load(picker, "stopped.safetensors")
    picker.evaluate(
        "() => { window.heard = []; const news = document.querySelector('.cl-news');"
        " const hear = () => window.heard.push(news.textContent);"
        " new MutationObserver(hear).observe(news, { childList: true }); }"
    )
    for number in (1, 2):
        with picker.expect_file_chooser() as chooser:
            picker.locator(".cl-use").click()
        with picker.expect_response(lambda response: response.url.endswith("/prompt")) as queued:
            chooser.value.set_files(PICTURES[number])
        waiting = queued.value.json()["prompt_id"]
    server.post("/queue", {"delete": [waiting]})
    cancelled = "(count) => window.heard.filter((one) => one === 'Cancelled.').length === count"
    picker.wait_for_function(cancelled, arg=1)
    server.post("/interrupt", {})
    picker.wait_for_function(cancelled, arg=2)


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
        effects="Pencil sketch，neon",  # a title, and a name
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
