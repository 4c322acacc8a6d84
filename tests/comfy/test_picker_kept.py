"""Favourites, recent choices and kept pairs: they outlive the page, and what other pages keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from gallery import SHIPPED, SHOW_NODE, cell, chosen, shown
from graphs import APP, open_page

from collectionlora.collection.file import read_catalogue


def test_a_pair_is_kept_and_found_again(picker: Any, server: Any, reopen: Callable[[], None]) -> None:
    cell(picker, "thermal").click()
    assert picker.locator(".cl-keep").count() == 0
    cell(picker, "bokeh").click(modifiers=["Shift"])
    assert not picker.get_by_label("Kept pairs").is_visible()
    picker.locator(".cl-keep").click()
    cell(picker, "sketch").click()
    picker.wait_for_timeout(500)
    kept = json.loads((server.base_directory / "user" / "default" / "collectionlora.json").read_text())
    assert kept["pairs"] == [["thermal", "bokeh"]]
    reopen()
    titles = read_catalogue(SHIPPED)
    picker.get_by_label("Kept pairs").select_option(f"{titles['thermal'].title} → {titles['bokeh'].title}")
    assert chosen(picker) == ("thermal", "bokeh")
    assert picker.locator(".cl-keep").get_attribute("aria-pressed") == "true"
    picker.locator(".cl-keep").click()
    assert not picker.get_by_label("Kept pairs").is_visible()
    picker.wait_for_timeout(300)


def test_favourites_and_recents_outlive_the_page(
    picker: Any, server: Any, reopen: Callable[[], None]
) -> None:
    cell(picker, "halftone").focus()
    picker.keyboard.press("f")
    cell(picker, "duotone").click()
    picker.wait_for_timeout(500)
    kept = json.loads((server.base_directory / "user" / "default" / "collectionlora.json").read_text())
    assert kept["favourites"] == ["halftone"]
    assert kept["recent"][0] == "duotone"
    reopen()
    picker.locator(".cl-category").select_option("favourites")
    assert shown(picker) == ["halftone"]
    picker.locator(".cl-category").select_option("recent")
    assert "duotone" in shown(picker)
    picker.locator(".cl-category").select_option("all")
    cell(picker, "halftone").focus()
    picker.keyboard.press("f")
    picker.wait_for_timeout(300)


def test_what_another_page_keeps_outlives_a_pick_in_this_one(picker: Any, server: Any) -> None:
    cell(picker, "neon").click()
    picker.wait_for_timeout(300)
    graph = picker.evaluate(f"() => {APP}.graph.serialize()")
    other = picker.context.browser.new_page(viewport={"width": 1600, "height": 1000})
    open_page(other, server.url)
    other.evaluate(f"(graph) => {APP}.loadGraphData(graph)", graph)
    other.evaluate(SHOW_NODE)
    cell(other, "rain").focus()
    other.keyboard.press("f")
    other.wait_for_timeout(500)
    other.close()
    cell(picker, "sketch").click()
    picker.wait_for_timeout(500)
    path = server.base_directory / "user" / "default" / "collectionlora.json"
    kept = json.loads(path.read_text())
    assert kept["favourites"] == ["rain"]
    assert kept["recent"][:2] == ["sketch", "neon"]
    assert "cl-favourite" in cell(picker, "rain").get_attribute("class")
    path.unlink()


def test_what_was_kept_outlives_a_pick_before_it_is_known(picker: Any, server: Any, reopen: Any) -> None:
    path = server.base_directory / "user" / "default" / "collectionlora.json"
    before = {"favourites": ["neon"], "recent": ["neon"], "pairs": [["neon", "thermal"]]}
    path.write_text(json.dumps(before))
    held: list[Any] = []
    address = "**/userdata/collectionlora.json*"
    picker.route(address, lambda route: route.abort() if not held else route.continue_())
    reopen()
    cell(picker, "sketch").click()  # what was kept cannot be read
    picker.wait_for_timeout(300)
    assert json.loads(path.read_text()) == before
    held.append(True)
    cell(picker, "thermal").click()
    picker.wait_for_timeout(800)
    picker.unroute(address)
    assert json.loads(path.read_text()) == before | {"recent": ["thermal", "neon"]}
    path.unlink()
