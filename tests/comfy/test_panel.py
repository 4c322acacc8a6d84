"""The distillation panel: live, after a reload, in two browsers, cancel and save."""

from __future__ import annotations

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

    assert "Most alike: " in panel.locator("canvas.cl-matrix").get_attribute("title")
    assert panel.locator("canvas.cl-matrix").evaluate(DRAWN)
    panel.get_by_label("Preview of which cycle").fill("0")
    assert "after 0 cycles" in panel.inner_text()

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
