"""The collection browser in ComfyUI's page: look, rename, another picture, leave out, copy, download."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from gallery import LOADER, SHOW_NODE, cell, load
from graphs import APP, PICTURES, POCKET, drop, open_page

from collectionlora.collection.file import load_collection, read_catalogue, save_collection
from collectionlora.pocket import WEIGHTS

SHIPPED = WEIGHTS / "collection.safetensors"
TOGGLE = f"() => {APP}.extensionManager.sidebarTab.toggleSidebarTab('collectionlora.collections')"


@pytest.fixture
def file(server: Any) -> Iterator[Path]:
    """A collection of the user's, and a plain LoRA beside it."""
    folder = server.base_directory / "models" / "loras"
    path = folder / "mine.safetensors"
    shutil.copy(SHIPPED, path)
    shutil.copy(WEIGHTS / "teachers" / "sketch.safetensors", folder / "plain.safetensors")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def browser(page: Any, server: Any, file: Path) -> Iterator[Any]:
    """The tab, open."""
    open_page(page, server.url)
    page.evaluate(TOGGLE)
    yield page.locator(".cl-browser")
    page.evaluate(TOGGLE)


OFFERED = f"(file) => {LOADER}.widgets[0].options.values.includes(file)"


def choose(browser: Any, name: str) -> None:
    browser.locator(f'button[data-file="{name}"]').click()
    browser.locator(".cl-effects li").first.wait_for()


def saved(browser: Any) -> None:
    browser.get_by_role("status").get_by_text("Saved: ").wait_for()


def test_it_lists_collections_with_what_is_in_them_and_no_other_lora(browser: Any) -> None:
    browser.locator('button[data-file="mine.safetensors"]').wait_for()
    names = browser.locator(".cl-file").all_inner_texts()
    assert {"pocket (built in)", "mine.safetensors"} <= set(names)
    assert "plain.safetensors" not in names
    choose(browser, "mine.safetensors")
    catalogue = read_catalogue(SHIPPED)
    facts = browser.locator("dl").inner_text()
    assert str(catalogue.base["name"]) in facts
    assert f"Cycles\n{catalogue.training['cycles']}" in facts
    assert f"Training time\n{catalogue.training['seconds'] / 3600:.1f} h" in facts
    titles = browser.locator('.cl-effects input[type="text"]')
    assert titles.evaluate_all("all => all.map(one => one.value)") == [e.title for e in catalogue.effects]


def test_the_pages_own_keys_go_through(browser: Any, page: Any) -> None:
    choose(browser, "mine.safetensors")
    browser.get_by_label("Title of sketch", exact=True).focus()
    page.evaluate(
        "() => { window.passed = [];"
        " window.addEventListener('keydown', (event) => window.passed.push(event.key)); }"
    )
    for key in ("Control+m", "x"):
        page.keyboard.press(key)
    passed = page.evaluate("() => window.passed")
    assert "m" in passed
    assert "x" not in passed


def test_titles_pictures_and_the_list_change_in_the_file(browser: Any, file: Path) -> None:
    choose(browser, "mine.safetensors")
    save = browser.get_by_role("button", name="Save", exact=True)
    assert save.is_disabled()
    before = read_catalogue(file)
    browser.get_by_label("Title of sketch", exact=True).fill("<b>Mine</b>")
    browser.get_by_role("button", name=f"Leave out {before['neon'].title}").click()
    line = browser.locator('li[data-name="thermal"]')
    large = file.parents[2] / "large.jpg"
    Image.open(PICTURES[0]).resize((3000, 2000)).save(large)
    line.locator('input[type="file"]').set_input_files(large)
    new = line.locator("img.cl-new")
    new.wait_for()
    assert new.evaluate(
        "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    ) == [
        512,
        341,
    ]
    save.click()
    saved(browser)
    weights, after = load_collection(file)
    assert after["sketch"].title == "<b>Mine</b>"
    assert after["thermal"].thumbnail != before["thermal"].thumbnail
    assert [e.name for e in after.effects] == [e.name for e in before.effects if e.name != "neon"]
    assert weights.down.keys() == load_collection(SHIPPED)[0].down.keys()
    assert browser.get_by_label("Title of sketch", exact=True).input_value() == "<b>Mine</b>"
    assert browser.locator("b").count() == 0


def test_a_gallery_on_the_page_shows_what_is_saved(browser: Any, page: Any, file: Path) -> None:
    drop(page, POCKET.parent / "workflows" / "apply_effect_pocket.json")
    load(page, "mine.safetensors")
    page.evaluate(SHOW_NODE)
    cell(page, "sketch").filter(has_text=read_catalogue(file)["sketch"].title).wait_for()
    choose(browser, "mine.safetensors")
    browser.get_by_label("Title of sketch", exact=True).fill("Mine")
    browser.get_by_role("button", name=f"Leave out {read_catalogue(file)['neon'].title}").click()
    browser.get_by_role("button", name="Save", exact=True).click()
    saved(browser)
    cell(page, "sketch").filter(has_text="Mine").wait_for()
    assert cell(page, "neon").count() == 0


def test_a_copy_of_the_built_in_collection_gets_a_name_and_can_be_downloaded(
    browser: Any, server: Any
) -> None:
    browser.page.evaluate(f"() => {{ {APP}.graph.add(window.LiteGraph.createNode('CollectionLoraLoad')); }}")
    choose(browser, "pocket (built in)")
    browser.get_by_label("Title of sketch", exact=True).fill("Scribble")
    assert browser.get_by_role("button", name="Save", exact=True).is_disabled()
    browser.get_by_label("Name of the copy").fill("collections/改名")
    browser.get_by_role("button", name="Save as").click()
    saved(browser)
    copy = server.base_directory / "models" / "loras" / "collections" / "改名.safetensors"
    assert read_catalogue(copy)["sketch"].title == "Scribble"
    browser.page.wait_for_function(OFFERED, arg="collections/改名.safetensors")

    def downloaded() -> tuple[str, bytes]:
        with browser.page.expect_download() as download:
            browser.get_by_role("link", name="Download").click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    assert downloaded() == ("改名.safetensors", copy.read_bytes())
    browser.get_by_label("Title of sketch", exact=True).fill("Doodle")
    browser.get_by_role("button", name="Save", exact=True).click()
    saved(browser)
    assert read_catalogue(copy)["sketch"].title == "Doodle"
    assert downloaded()[1] == copy.read_bytes()  # and none that the browser has kept


SAVE = f"""
() => {{
  const graph = {APP}.graph;
  graph.rootGraph.clear();
  const [pocket, load, save] = ["PocketModel", "Load", "Save"].map((name) => {{
    const node = window.LiteGraph.createNode(`CollectionLora${{name}}`);
    graph.add(node);
    return node;
  }});
  pocket.connect(0, load, load.findInputSlot("model"));
  load.connect(1, save, save.findInputSlot("collection"));
  save.widgets.find((one) => one.name === "filename").value = "collections/of a graph";
  return {APP}.queuePrompt(0);
}}
"""


def test_what_a_graph_saves_can_be_loaded_at_once(page: Any) -> None:
    page.evaluate(SAVE)
    page.wait_for_function(OFFERED, arg="collections/of a graph.safetensors", timeout=60_000)


@pytest.fixture
def other(file: Path) -> Iterator[Path]:
    """A second one."""
    path = file.with_name("other.safetensors")
    shutil.copy(file, path)
    yield path
    path.unlink()


def test_a_file_that_appears_is_listed_and_what_is_typed_stays(browser: Any, page: Any, file: Path) -> None:
    choose(browser, "mine.safetensors")
    browser.get_by_label("Title of sketch", exact=True).fill("Scribble")
    new = file.with_name("new.safetensors")
    shutil.copy(SHIPPED, new)
    assert page.evaluate(  # the page is about to be left
        "() => !window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    )
    page.evaluate(f"() => {APP}.api.dispatchCustomEvent('collectionlora.saved', {{}})")
    browser.locator('button[data-file="new.safetensors"]').wait_for()
    assert browser.get_by_label("Title of sketch", exact=True).input_value() == "Scribble"
    new.unlink()
    browser.get_by_role("button", name="Discard").click()


def test_changes_are_not_lost_by_opening_another_file_or_closing_the_tab(other: Path, browser: Any) -> None:
    choose(browser, "mine.safetensors")
    title = browser.get_by_label("Title of sketch", exact=True)
    before = title.input_value()
    title.fill("Mine")
    browser.locator('button[data-file="other.safetensors"]').click()
    browser.get_by_text("The changes are not saved yet.").wait_for()
    assert browser.locator('[aria-current="true"] .cl-file').inner_text() == "mine.safetensors"
    browser.page.evaluate(TOGGLE)
    assert not browser.is_visible()
    browser.page.evaluate(TOGGLE)
    assert title.input_value() == "Mine"
    browser.get_by_role("button", name="Discard").click()
    browser.page.wait_for_function(
        "(title) => document.querySelector('[data-name=sketch] [type=text]')?.value === title", arg=before
    )
    choose(browser, "other.safetensors")
    assert browser.locator('[aria-current="true"] .cl-file').inner_text() == "other.safetensors"


LATE = (
    "() => { const read = window.createImageBitmap;"
    " window.createImageBitmap = (file) => new Promise((resolve) => {"
    " window.late = () => { window.createImageBitmap = read; resolve(read(file)); }; }); }"
)


def test_a_change_is_of_the_file_it_was_made_in(other: Path, browser: Any, page: Any) -> None:
    choose(browser, "mine.safetensors")
    page.evaluate(LATE)  # a picture that is read when another file is open
    browser.locator('li[data-name="thermal"] input[type="file"]').set_input_files(PICTURES[0])
    held: list[Any] = []
    page.route("**/collectionlora/catalogue?*", lambda route: held.append(route))
    browser.locator('button[data-file="other.safetensors"]').click()
    page.wait_for_function(
        "() => document.querySelector('.cl-browser [aria-current=true]').dataset.file === 'other.safetensors'"
    )
    assert browser.locator(".cl-detail").count() == 0
    page.wait_for_timeout(200)
    for route in held:
        route.continue_()
    page.unroute("**/collectionlora/catalogue?*")
    browser.locator(".cl-effects li").first.wait_for()
    page.evaluate("() => window.late()")
    page.wait_for_timeout(200)
    assert browser.locator("img.cl-new").count() == 0
    assert browser.get_by_role("button", name="Save", exact=True).is_disabled()

    page.route("**/collectionlora/catalogue?*", lambda route: route.abort())
    browser.locator('button[data-file="mine.safetensors"]').click()
    browser.get_by_role("status").get_by_text("Failed to fetch").wait_for()
    assert browser.locator(".cl-detail").count() == 0
    page.unroute("**/collectionlora/catalogue?*")


def test_a_slow_copy_leaves_what_is_changed_elsewhere_meanwhile(
    browser: Any, page: Any, server: Any, file: Path
) -> None:
    choose(browser, "pocket (built in)")
    held: list[Any] = []
    page.route("**/collectionlora/edit", lambda route: held.append(route))
    browser.get_by_label("Name of the copy").fill("slow copy")
    browser.get_by_role("button", name="Save as").click()
    browser.get_by_role("status").get_by_text("Saving …").wait_for()
    choose(browser, "mine.safetensors")
    browser.get_by_label("Title of sketch", exact=True).fill("Mine")
    held[0].continue_()
    page.unroute("**/collectionlora/edit")
    browser.locator('button[data-file="slow copy.safetensors"]').wait_for()
    saved(browser)
    assert browser.get_by_label("Title of sketch", exact=True).input_value() == "Mine"
    assert browser.locator('[aria-current="true"]').inner_text().startswith("mine.safetensors")
    browser.get_by_role("button", name="Discard").click()
    page.wait_for_function("() => document.activeElement?.dataset?.file === 'mine.safetensors'")
    (server.base_directory / "models" / "loras" / "slow copy.safetensors").unlink()


def test_after_a_lost_connection_it_goes_on(browser: Any, page: Any, file: Path) -> None:
    choose(browser, "mine.safetensors")
    browser.get_by_label("Title of sketch", exact=True).fill("Mine")
    page.route("**/collectionlora/edit", lambda route: route.abort())
    browser.get_by_role("button", name="Save", exact=True).click()
    browser.get_by_role("status").get_by_text("Failed to fetch").wait_for()
    page.unroute("**/collectionlora/edit")
    new = file.with_name("new.safetensors")
    file.rename(new)
    try:
        page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
        browser.locator('button[data-file="new.safetensors"]').wait_for()
        assert browser.get_by_label("Title of sketch", exact=True).input_value() == "Mine"
    finally:
        new.rename(file)
    browser.get_by_role("button", name="Save", exact=True).click()
    saved(browser)
    assert read_catalogue(file)["sketch"].title == "Mine"


def test_what_a_file_says_of_itself_is_text_and_hides_nothing(other: Path, browser: Any, page: Any) -> None:
    weights, catalogue = load_collection(other)
    name = "<b>base</b>"
    training = {"Base": "<b>other</b>", "Steps": "<img src=x>", "<b>cycles</b>": 7}
    save_collection(
        other, weights, replace(catalogue, base=catalogue.base | {"name": name}, training=training)
    )
    page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    page.wait_for_timeout(500)
    choose(browser, "other.safetensors")
    said = browser.locator("dt").all_inner_texts(), browser.locator("dd").all_inner_texts()
    assert said == (
        ["Base", "Steps", "Base", "Steps", "<b>cycles</b>"],
        [name, str(len(catalogue.sigmas) - 1), "<b>other</b>", "<img src=x>", "7"],
    )
    assert browser.locator("dl b, dl img").count() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "plain.safetensors"}, "plain LoRA"),
        ({"file": "../../secret.safetensors"}, "no such file"),
        ({"save_as": "../outside"}, "give a name below models/loras"),
        ({"file": "pocket (built in)"}, "give the copy a name"),
        ({"pictures": {"sketch": "bm90IGEgcGljdHVyZQ=="}}, "not a picture"),
        ({"drop": 5}, "drop is not a list"),
        ({"titles": {"sketch": 5}}, "titles holds something other than text"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    server: Any, file: Path, change: dict[str, Any], message: str
) -> None:
    before = file.read_bytes()
    asked = {"file": "mine.safetensors", "titles": {"sketch": "x"}, **change}
    assert message in server.post("/collectionlora/edit", asked)["error"]
    assert file.read_bytes() == before


def test_pictures_that_are_too_large_together_are_refused_in_words(server: Any) -> None:
    answer = server.post("/collectionlora/edit", {"file": "x", "pictures": {"a": "A" * (101 * 2**20)}})
    assert "too large to send at once" in answer["error"]
