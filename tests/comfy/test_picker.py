"""The gallery of Choose Effect, in the real page, in both of its node modes: seeing, searching, picking."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from gallery import (
    LOADER,
    NODE,
    SET_FILE,
    SHIPPED,
    cell,
    changed_catalogue,
    chosen,
    focused,
    load,
    shown,
)
from graphs import APP, node

from collectionlora.collection.file import read_catalogue


def test_effects_are_seen_and_picked(picker: Any) -> None:
    effects = read_catalogue(SHIPPED).effects
    assert shown(picker) == [effect.name for effect in effects]
    for effect in effects:
        assert cell(picker, effect.name).inner_text().strip() == effect.title
        assert cell(picker, effect.name).bounding_box()["height"] > 80  # picture and name
    loaded = "(images) => images.every((one) => one.complete && one.naturalWidth === 2 * one.naturalHeight)"
    picker.wait_for_timeout(500)
    assert picker.locator(".cl-cell img").evaluate_all(loaded)
    cell(picker, "sketch").click()
    assert chosen(picker) == ("sketch", "none")
    assert cell(picker, "sketch").get_attribute("aria-selected") == "true"


def test_a_second_effect_is_added_swapped_and_removed(picker: Any) -> None:
    cell(picker, "thermal").click()
    picker.locator(".cl-add").click()
    cell(picker, "bokeh").click()
    assert chosen(picker) == ("thermal", "bokeh")
    picker.locator(".cl-swap").click()
    assert chosen(picker) == ("bokeh", "thermal")
    picker.locator(".cl-drop").click()
    assert chosen(picker) == ("bokeh", "none")
    cell(picker, "neon").click(modifiers=["Shift"])
    assert chosen(picker) == ("bokeh", "neon")


def test_search_and_categories(picker: Any) -> None:
    effects = read_catalogue(SHIPPED).effects
    picker.locator(".cl-search").fill("sket")
    assert shown(picker) == ["sketch"]
    picker.locator(".cl-search").fill("")
    category = effects[0].category
    picker.locator(".cl-category").select_option(category)
    assert shown(picker) == [effect.name for effect in effects if effect.category == category]
    picker.locator(".cl-category").select_option("all")
    assert len(shown(picker)) == len(effects)


def test_the_same_seed_picks_the_same(picker: Any) -> None:
    picks = []
    for seed in ("7", None, None, "7"):
        if seed is not None:
            picker.get_by_label("Seed of the random pick").fill(seed)
        picker.locator(".cl-random").click()
        picks.append(chosen(picker)[0])
    assert picks[0] == picks[3]
    assert len(set(picks)) > 1
    picker.locator(".cl-search").fill("sket")  # what is not shown is not picked
    picker.locator(".cl-random").click()
    assert chosen(picker)[0] == "sketch"


def test_the_slider_sizes_the_pictures(picker: Any) -> None:
    widths = []
    for size in ("56", "192"):
        picker.get_by_label("Size of the pictures").fill(size)
        widths.append(picker.locator(".cl-cell img").first.bounding_box()["width"])
    assert widths[0] < 100 < 180 < widths[1]


def test_the_words_of_what_is_picked_fill_themselves_in(picker: Any, server: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(f"() => {NODE}.widgets.find((w) => w.name === 'then').value = 'none'")
    graph = picker.evaluate(f"async () => (await {APP}.graphToPrompt()).output")
    (key,) = [key for key, one in graph.items() if one["class_type"] == "CollectionLoraEffect"]
    needed = {key, graph[key]["inputs"]["collection"][0]}
    needed.add(graph[graph[key]["inputs"]["collection"][0]]["inputs"]["model"][0])
    asked = {name: graph[name] for name in needed} | {"words": node("PreviewAny", source=[key, 1])}
    effect = read_catalogue(SHIPPED)["sketch"]
    assert server.run(asked)["words"]["text"] == [effect.prompt]
    assert effect.prompt.startswith(effect.tag)


def test_a_collection_in_a_subfolder_is_offered_and_shown(picker: Any, server: Any) -> None:
    path = server.base_directory / "models" / "loras" / "studio" / "day one" / "mine.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHIPPED, path)
    offered = server.get("/object_info/CollectionLoraLoad")["CollectionLoraLoad"]["input"]["required"]["file"]
    assert "studio/day one/mine.safetensors" in str(offered)
    load(picker, "studio/day one/mine.safetensors")
    assert len(shown(picker)) == len(read_catalogue(SHIPPED).effects)


def test_the_keyboard_is_enough(picker: Any) -> None:
    effects = [effect.name for effect in read_catalogue(SHIPPED).effects]
    picker.locator(".cl-cell[tabindex='0']").focus()
    picker.keyboard.press("Home")
    picker.keyboard.press("ArrowRight")
    picker.keyboard.press("Enter")
    assert chosen(picker)[0] == effects[1]
    picker.keyboard.press("End")
    picker.keyboard.press("Shift+Enter")
    assert chosen(picker) == (effects[1], effects[-1])
    picker.keyboard.press("Home")
    picker.keyboard.press("f")
    assert "cl-favourite" in cell(picker, effects[0]).get_attribute("class")
    picker.keyboard.press("f")
    assert "cl-favourite" not in cell(picker, effects[0]).get_attribute("class")


def test_text_of_a_hostile_file_stays_text(picker: Any, server: Any) -> None:
    bad = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    worded = {"title": bad, "category": bad[:64], "prompt": bad}
    changed_catalogue(server, "hostile.safetensors", lambda effects: [effects[0] | worded, *effects[1:]])
    load(picker, "hostile.safetensors")
    name = read_catalogue(SHIPPED).effects[0].name
    assert cell(picker, name).inner_text().strip() == bad
    cell(picker, name).click()
    assert picker.evaluate("() => window.hacked") is None
    assert picker.locator(".cl-cell script, .cl-cell img[src=x]").count() == 0


CHANGE_SOURCE = {
    "a list by a link": (
        "const list = LiteGraph.createNode('PrimitiveNode'); graph.add(list);"
        " list.connect(0, loader, loader.findInputSlot('file'));",
        "Load Collection gets its file by a link",
    ),
    "a distillation": (
        "const distil = LiteGraph.createNode('CollectionLoraDistil'); graph.add(distil);"
        " distil.connect(distil.outputs.findIndex((o) => o.type === 'COLLECTION_LORA'), chooser, 0);",
        "distilled in this graph",
    ),
    "nothing": ("chooser.disconnectInput(0);", "Connect Load Collection"),
}


@pytest.mark.parametrize("source", CHANGE_SOURCE)
def test_a_sentence_says_why_no_effects_are_seen(picker: Any, source: str) -> None:
    change, expected = CHANGE_SOURCE[source]
    picker.evaluate(
        f"() => {{ const graph = {APP}.graph, loader = {LOADER}, chooser = {NODE}, {{ LiteGraph }} = window;"
        f" {change} }}"
    )
    picker.locator(".cl-message").filter(has_text=expected).wait_for()
    assert shown(picker) == []


def test_the_focus_stays_in_the_gallery(picker: Any) -> None:
    names = [effect.name for effect in read_catalogue(SHIPPED).effects]
    for name in names[:2]:
        cell(picker, name).focus()
        picker.keyboard.press("f")
    picker.locator(".cl-category").select_option("favourites")
    cell(picker, names[0]).focus()
    picker.keyboard.press("f")
    assert focused(picker) == names[1]
    picker.keyboard.press("Delete")
    assert picker.evaluate(f"() => Boolean({NODE})")
    picker.keyboard.press("f")
    assert focused(picker) == "cl-search"
    picker.locator(".cl-category").select_option("all")

    cell(picker, names[-1]).focus()
    scrolled = "(grid) => grid.scrollTop"
    before = picker.locator(".cl-grid").evaluate(scrolled)
    assert before > 100
    picker.evaluate(
        f"() => {{ const gallery = {NODE}.collectionLoraGallery;"
        " gallery.show(gallery.effects.map((one) => ({ ...one, title: one.title + '!' }))); }"
    )
    assert focused(picker) == names[-1]
    assert abs(picker.locator(".cl-grid").evaluate(scrolled) - before) < 100  # unseen rows are estimated
    assert cell(picker, names[-1]).inner_text().strip().endswith("!")


def test_the_latest_come_first_for_the_keyboard_too(picker: Any) -> None:
    for name in ("sketch", "neon", "thermal"):
        cell(picker, name).click()
    picker.locator(".cl-category").select_option("recent")
    assert shown(picker)[:3] == ["thermal", "neon", "sketch"]
    cell(picker, "thermal").focus()
    picker.keyboard.press("ArrowRight")
    assert focused(picker) == "neon"
    picker.keyboard.press("Enter")
    assert shown(picker)[:3] == ["neon", "thermal", "sketch"]
    assert focused(picker) == "neon"
    picker.locator(".cl-category").select_option("all")


def test_the_pages_own_keys_go_through(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(
        "() => { window.passed = []; window.addEventListener('keydown', (event) =>"
        " window.passed.push(event.key), { once: false }); }"
    )
    picker.keyboard.press("Control+m")
    picker.keyboard.press("Control+f")
    assert "cl-favourite" not in cell(picker, "sketch").get_attribute("class")
    picker.keyboard.press("x")
    assert {"m", "f"} <= set(picker.evaluate("() => window.passed"))
    assert "x" not in picker.evaluate("() => window.passed")


def test_a_second_pick_without_a_first_is_the_first(picker: Any) -> None:
    picker.evaluate(f"() => {NODE}.collectionLoraGallery.choose({{ first: '', second: null }})")
    cell(picker, "neon").click(modifiers=["Shift"])
    assert chosen(picker) == ("neon", "none")


def test_the_source_is_seen_under_pointer_and_focus(picker: Any) -> None:
    position = "(image) => getComputedStyle(image).objectPosition"
    picture = cell(picker, "sketch").locator("img")
    picker.mouse.move(5, 5)
    assert picture.evaluate(position) == "100% 50%"
    cell(picker, "sketch").hover()
    assert picture.evaluate(position) == "0px 50%"
    picker.mouse.move(5, 5)
    picker.locator(".cl-cell[tabindex='0']").focus()
    picker.keyboard.press("Home")  # as the keyboard brings it
    first = picker.locator(".cl-cell").first.locator("img")
    assert first.evaluate(position) == "0px 50%"
    assert picture.evaluate(position) == "100% 50%"


def test_categories_may_be_called_as_the_pickers_own_kinds(picker: Any, server: Any) -> None:
    kinds = ["all", "recent", "picture"]
    changed_catalogue(
        server, "kinds.safetensors", lambda effects: [e | {"category": k} for e, k in zip(effects, kinds)]
    )
    load(picker, "kinds.safetensors")
    names = shown(picker)
    for kind, name in zip(kinds, names):
        picker.locator(".cl-category").select_option(f"category {kind}")
        assert shown(picker) == [name]
    picker.locator(".cl-category").select_option("all")
    assert shown(picker) == names


def test_titles_that_were_just_saved_are_seen(picker: Any, server: Any) -> None:
    changed_catalogue(server, "titled.safetensors", lambda effects: effects)
    load(picker, "titled.safetensors")
    changed_catalogue(server, "titled.safetensors", lambda effects: [e | {"title": "New"} for e in effects])
    picker.evaluate(
        "async () => { const place = [...document.querySelectorAll('link')].find((one) =>"
        " one.href.endsWith('/picker/picker.css')).href;"
        " (await import(new URL('catalogue.js', place))).changed('titled.safetensors'); }"
    )
    cell(picker, "sketch").filter(has_text="New").wait_for()


def test_a_late_error_of_one_file_leaves_the_other(picker: Any) -> None:
    picker.route("**/catalogue?file=gone*", lambda route: (time.sleep(1), route.continue_()))
    picker.evaluate(SET_FILE, "gone.safetensors")
    load(picker, "pocket (built in)")
    picker.wait_for_timeout(1500)
    picker.unroute("**/catalogue?file=gone*")
    assert not picker.locator(".cl-message").is_visible()
    assert len(shown(picker)) == len(read_catalogue(SHIPPED).effects)


MEASURE = (
    (
        "async (file) => { const { root } = NODE.collectionLoraGallery; const frame = () => new"
        " Promise(requestAnimationFrame); await frame(); const start = performance.now(); (SET_FILE)(file);"
        " while (root.querySelectorAll('.cl-cell').length !== 180) await frame();"
        " await frame(); const open = performance.now() - start;"
        " const grid = root.querySelector('.cl-grid'); const frames = []; let last = await frame();"
        " for (let i = 0; i < 90; i++) { grid.scrollTop += 24; const now = await frame();"
        " frames.push(now - last); last = now; } frames.sort((a, b) => a - b);"
        " const [median, slow] = [0.5, 0.95].map((share) => frames[Math.floor(share * frames.length)]);"
        " return { open, median, slow }; }"
    )
    .replace("NODE", NODE)
    .replace("SET_FILE", SET_FILE)
)
"""Milliseconds from choosing the file of 180 effects to the frame after they are there, and between frames
while scrolling."""


def test_the_wheel_scrolls_the_grid_and_with_ctrl_zooms_the_canvas(picker: Any) -> None:
    zoom = f"() => {APP}.canvas.ds.scale"
    top = f"() => {NODE}.collectionLoraGallery.root.querySelector('.cl-grid').scrollTop"
    picker.locator(".cl-search").click()  # Vue nodes leave the wheel to what has the focus
    cell(picker, "sketch").hover()
    before = picker.evaluate(zoom)
    picker.mouse.wheel(0, 200)
    picker.wait_for_function(f"() => ({top})() > 0")
    assert picker.evaluate(zoom) == before
    picker.keyboard.down("Control")
    picker.mouse.wheel(0, 120)
    picker.keyboard.up("Control")
    picker.wait_for_function(f"(before) => ({zoom})() < before", arg=before)
    assert picker.evaluate("() => window.devicePixelRatio") == 1  # nor the browser the page


def test_many_effects_open_at_once(picker: Any, server: Any, record_property: Any) -> None:
    changed_catalogue(
        server,
        "many.safetensors",
        lambda small: [
            {**small[i % len(small)], "name": f"effect_{i}", "title": f"Effect {i}", "tag": f"<tag_{i}>"}
            for i in range(180)
        ],
    )
    load(picker, "many.safetensors")
    assert len(shown(picker)) == 180
    cell(picker, "effect_179").scroll_into_view_if_needed()
    cell(picker, "effect_179").click()
    assert chosen(picker)[0] == "effect_179"
    found = []
    for _ in range(5):
        load(picker, "pocket (built in)")
        found.append(picker.evaluate(MEASURE, "many.safetensors"))
    for name in found[0]:
        record_property(name, round(median(one[name] for one in found), 1))  # in the report of --junit-xml
