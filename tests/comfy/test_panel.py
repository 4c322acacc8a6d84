"""The distillation panel: live, after a reload, in two browsers, cancel and save."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, distil, open_page

from collectionlora.collection.file import read_catalogue

SHOW = f"() => {APP}.extensionManager.sidebarTab.toggleSidebarTab('collectionlora.distillation')"
DRAWN = (
    "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
    ".data.some((value, at) => at % 4 === 3 && value > 0)"
)


def show_panel(page: Any) -> Any:
    panel = page.locator(".cl-panel")
    if not panel.is_visible():
        page.evaluate(SHOW)
    panel.wait_for(timeout=5_000)
    return panel


@pytest.mark.usefixtures("lessons")
def test_a_run_is_watched_reloaded_saved_and_cancelled(page: Any, server: Any) -> None:
    prompt = server.queue(distil("watched", cycles=2000))
    panel = show_panel(page)
    status = panel.get_by_role("status")
    page.wait_for_function(
        "() => /cycle [5-9] of 2000/.test(document.querySelector('.cl-panel')?.textContent)", timeout=60_000
    )
    assert panel.locator("h3").first.inner_text() == "watched"
    assert panel.locator("canvas").evaluate(DRAWN)
    assert {"fm", "bs", "ts", "fake"} <= set(panel.locator("table td:first-child").all_inner_texts())
    assert "student and fake score" in panel.locator("pre").inner_text()
    panel.locator("select").select_option("effects")
    assert {"thermal", "sketch"} <= set(panel.locator("table td:first-child").all_inner_texts())
    page.wait_for_function(
        "() => { const i = document.querySelector('.cl-panel img'); return i.complete && i.naturalWidth "
        "> 200; }",
        timeout=30_000,
    )

    open_page(page, server.url)
    panel = show_panel(page)
    assert panel.locator("h3").first.inner_text() == "watched"
    page.wait_for_function("() => /cycle \\d+ of 2000/.test(document.querySelector('.cl-panel').textContent)")
    assert panel.locator("canvas").evaluate(DRAWN)

    collection = server.base_directory / "output" / "collectionlora" / "watched" / "collection.safetensors"
    assert not collection.exists()
    panel.get_by_role("button", name="Save now").click()
    page.wait_for_function(
        "() => document.querySelector('.cl-panel').textContent.includes('Saved: ')", timeout=30_000
    )
    saved = read_catalogue(collection).training["cycles"]

    other = page.context.browser.new_page()
    open_page(other, server.url)
    assert show_panel(other).locator("h3").first.inner_text() == "watched"
    other.locator(".cl-panel").get_by_role("button", name="Cancel").click()
    for one in (page, other):
        one.wait_for_function(
            "() => document.querySelector('.cl-panel').textContent.includes('Stopped: Interrupt')",
            timeout=60_000,
        )
    other.close()
    assert "collection.safetensors" in status.inner_text()
    assert server.wait(prompt)["status"]["status_str"] == "error"
    assert read_catalogue(collection).training["cycles"] >= saved
