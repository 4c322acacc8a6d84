"""The distillation panel: live, after a reload, in two browsers, cancel and save."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, distil, open_page

from collectionlora.collection.file import read_catalogue

TOGGLE = f"() => {APP}.extensionManager.sidebarTab.toggleSidebarTab('collectionlora.distillation')"
DRAWN = (
    "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
    ".data.some((value, at) => at % 4 === 3 && value > 0)"
)


def in_words(compared: dict[str, Any]) -> str:
    """How many previews have their own teacher's image as the nearest one."""
    lines = compared["matrix"]
    own = sum(line[at] == max(line) > 0 for at, line in enumerate(lines))
    return f"{own} of {len(lines)} are nearest to their own"


def show_panel(page: Any) -> Any:
    panel = page.locator(".cl-panel")
    if not panel.is_visible():
        page.evaluate(TOGGLE)
    page.wait_for_function("() => document.querySelector('.cl-panel h3')?.textContent === 'watched'")
    return panel


@pytest.fixture
def watched(page: Any, server: Any, lessons: tuple[str, str]) -> Iterator[str]:
    """A long run's prompt id. It is ended with the test, and the panel closed."""
    yield server.queue(distil("watched", cycles=2000))
    server.post("/interrupt", {})
    if page.locator(".cl-panel").is_visible():
        page.evaluate(TOGGLE)


def test_a_run_is_watched_reloaded_saved_and_cancelled(page: Any, server: Any, watched: str) -> None:
    panel = show_panel(page)
    status = panel.get_by_role("status")
    page.wait_for_function(
        "() => /cycle [5-9] of 2000/.test(document.querySelector('.cl-panel')?.textContent)", timeout=60_000
    )
    assert panel.locator("canvas").first.evaluate(DRAWN)
    assert {"fm", "bs", "ts", "fake"} <= set(panel.locator("table td:first-child").all_inner_texts())
    assert "student and fake score" in panel.locator("pre").inner_text()
    panel.locator("select").select_option("effects")
    assert {"thermal", "sketch"} <= set(panel.locator("table td:first-child").all_inner_texts())
    page.wait_for_function(
        "() => { const i = document.querySelector('.cl-panel img'); return i.complete && i.naturalWidth "
        "> 200; }",
        timeout=30_000,
    )

    nearest, alike = panel.locator("canvas.cl-matrix").all()
    assert "Most alike: " in alike.get_attribute("title")
    assert re.search("[0-2] of 2 are nearest to their own", nearest.get_attribute("aria-label"))
    assert nearest.evaluate(DRAWN)
    assert alike.evaluate(DRAWN)
    panel.get_by_label("Preview of which cycle").fill("0")
    assert "after 0 cycles" in panel.inner_text()
    kept = server.get("/collectionlora/run")["nearest"]["0"]
    assert kept["names"] == ["Thermal", "Sketch"]
    assert nearest.get_attribute("aria-label").startswith(in_words(kept))

    open_page(page, server.url)
    panel = show_panel(page)
    page.wait_for_function("() => /cycle \\d+ of 2000/.test(document.querySelector('.cl-panel').textContent)")
    assert panel.locator("canvas").first.evaluate(DRAWN)

    collection = server.base_directory / "output" / "collectionlora" / "watched" / "collection.safetensors"
    assert not collection.exists()
    panel.get_by_role("button", name="Save now").click()
    page.wait_for_function(
        "() => document.querySelector('.cl-panel').textContent.includes('Saved: ')", timeout=30_000
    )
    saved = read_catalogue(collection).training["cycles"]

    other = page.context.browser.new_page()
    open_page(other, server.url)
    show_panel(other)
    other.locator(".cl-panel").get_by_role("button", name="Cancel").click()
    for one in (page, other):
        one.wait_for_function(
            "() => document.querySelector('.cl-panel').textContent.includes('Stopped: Interrupt')",
            timeout=60_000,
        )
    other.close()
    assert "collection.safetensors" in status.inner_text()
    assert server.wait(watched)["status"]["status_str"] == "error"
    assert read_catalogue(collection).training["cycles"] >= saved
