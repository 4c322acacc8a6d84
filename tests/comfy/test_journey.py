"""From a dropped workflow to a picture and back, as a user goes, in both node modes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, POCKET, drop, open_page

WORKFLOW = POCKET.parent / "workflows" / "apply_effect_pocket.json"
SHOW = """
(name) => {
  const node = APP.graph.nodes.find((n) => n.comfyClass === name);
  APP.canvas.ds.scale = 1;
  APP.canvas.ds.offset = [200 - node.pos[0], 150 - node.pos[1]];
  APP.canvas.setDirty(true, true);
}
""".replace("APP", APP)
SAVED = f"{APP}.graph.nodes.find((n) => n.comfyClass === 'SaveImage')"
DRAWN = f"() => {SAVED}.imgs?.[0]?.naturalWidth === 128"


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_drop_pick_run_see_save_and_reload(page: Any, server: Any, mode: str) -> None:
    page.evaluate(f"(on) => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", mode == "vue")
    open_page(page, server.url)
    drop(page, WORKFLOW)
    page.evaluate(SHOW, "CollectionLoraEffect")
    page.locator(".cl-cell[data-name=bokeh]").click()

    before = set(server.get("/history"))
    page.get_by_test_id("queue-button").click()
    entry = finished(server, before)
    effect = next(one for one in entry["prompt"][2].values() if one["class_type"] == "CollectionLoraEffect")
    assert effect["inputs"]["effect"] == "bokeh"
    page.evaluate(SHOW, "SaveImage")
    if mode == "canvas":  # there the picture is drawn, here it is an element
        page.wait_for_function(DRAWN)
    else:
        (file,) = [one["filename"] for out in entry["outputs"].values() for one in out["images"]]
        picture = page.locator(f"img[src*='{file}']").first
        picture.wait_for(state="visible")
        assert picture.evaluate("(img) => img.naturalWidth") == 128

    name = f"journey in {mode}"
    page.locator("#graph-canvas, canvas").first.focus()
    page.keyboard.press("Control+s")
    page.get_by_role("dialog").get_by_role("textbox").fill(name)
    page.keyboard.press("Enter")
    file = server.base_directory / "user" / "default" / "workflows" / f"{name}.json"
    for _ in range(50):
        if file.exists():
            break
        page.wait_for_timeout(100)
    kept = json.loads(file.read_text("utf-8"))
    assert any("bokeh" in (one.get("widgets_values") or []) for one in kept["nodes"])

    open_page(page, server.url)  # the page brings the last workflow back by itself
    page.wait_for_function(f"() => {APP}.graph.nodes.some((n) => n.comfyClass === 'CollectionLoraEffect')")
    page.evaluate(SHOW, "CollectionLoraEffect")
    cell = page.locator(".cl-cell[data-name=bokeh]")
    cell.wait_for()
    assert cell.get_attribute("aria-selected") == "true"


def finished(server: Any, before: set[str]) -> dict[str, Any]:
    """The history of the one prompt that was not there before, once it is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        history = server.get("/history")
        if new := set(history) - before:
            (key,) = new
            assert history[key]["status"]["status_str"] == "success", history[key]["status"]
            return dict(history[key])
        time.sleep(0.5)
    raise AssertionError("the run did not end")
