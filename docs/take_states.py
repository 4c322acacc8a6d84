"""Take the pictures of docs/picker.md anew: gallery and panel in each of their states.

usage: python docs/take_states.py   (three minutes on two cores; writes docs/states/*.jpg)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
from take_pictures import ROOT, TAB, WINDOW, Studio, in_a_studio, save

sys.path.append(str(ROOT / "tests" / "comfy"))
from gallery import NODE, cell, changed_catalogue, load
from graphs import APP, PICTURES

STATES = ROOT / "docs" / "states"
APART = f"() => {{ const node = {NODE}; node.setSize([720, 620]); node.pos = [0, 3000]; }}"


def keep(studio: Studio, name: str, part: str) -> None:
    """One part of the page, as far as it is seen."""
    studio.page.wait_for_timeout(800)
    box = studio.page.locator(part).bounding_box()
    box["height"] = min(box["height"], WINDOW["height"] - box["y"])  # it scrolls
    save(studio.page.screenshot(clip=box), STATES / f"{name}.jpg")


def show(studio: Studio) -> list[float]:
    """Move Choose Effect into view; x, y, width and height of it."""
    page = studio.page
    box: list[float] = page.evaluate(f"() => [...{NODE}.pos, ...{NODE}.size]")
    page.evaluate(
        f"([x, y]) => {{ const {{ ds }} = {APP}.canvas; ds.scale = 1; ds.offset = [10 - x, 40 - y];"
        f" {APP}.canvas.setDirty(true, true); }}",
        box[:2],
    )
    page.wait_for_timeout(800)
    return box


def gallery(studio: Studio, name: str) -> None:
    """Choose Effect as it is now, alone."""
    studio.page.mouse.move(0, 0)
    box = show(studio)
    clip = {"x": 0, "y": 0, "width": box[2] + 20, "height": box[3] + 50}
    save(studio.page.screenshot(clip=clip), STATES / f"{name}.jpg")


def of_the_gallery(studio: Studio) -> None:
    """Choose, compose, search, keep, miss, draw on one's own picture; the canvas's own nodes."""
    page, server = studio.page, studio.server
    studio.open("apply_effect_pocket")
    studio.focus()
    page.evaluate(APART)
    show(studio)
    cell(page, "stained_glass").click()
    gallery(studio, "one")
    cell(page, "bokeh").click(modifiers=["Shift"])
    gallery(studio, "a_then_b")
    page.locator(".cl-search").fill("gl")
    gallery(studio, "search")
    page.locator(".cl-search").fill("")
    for name in ("neon", "sketch", "frost"):
        cell(page, name).locator(".cl-star").click()
    page.locator(".cl-category").select_option("favourites")
    gallery(studio, "favourites")
    page.locator(".cl-category").select_option("all")
    changed_catalogue(
        server, "less.safetensors", lambda effects: [e for e in effects if e["name"] != "bokeh"]
    )
    load(page, "less.safetensors")
    gallery(studio, "missing_effect")
    load(page, "gone.safetensors")
    gallery(studio, "missing_file")
    changed_catalogue(server, "few.safetensors", lambda effects: effects[10:22])
    load(page, "few.safetensors")
    with page.expect_file_chooser() as chooser:
        page.locator(".cl-use").click()
    chooser.value.set_files(PICTURES[3])
    page.locator(".cl-news").filter(has_text="Drawn on your picture.").wait_for()
    gallery(studio, "own_picture")
    load(page, "pocket (built in)")
    studio.vue(False)
    gallery(studio, "canvas_mode")
    studio.vue(True)
    studio.focus()


def of_the_panel(studio: Studio) -> None:
    """While it runs, losses by effect; cancelled."""
    page = studio.page
    studio.open("distil_pocket")
    page.evaluate(TAB, "distillation")
    studio.run()
    side = ".cl-panel:not(.cl-on-node)"
    while studio.server.answer("/collectionlora/run").get("cycle", 0) < 8:
        time.sleep(0.5)
    page.locator(side).get_by_label("Curves", exact=True).select_option("effects")
    keep(studio, "by_effect", side)
    page.locator(side).get_by_role("button", name="Cancel").click()
    studio.wait()
    page.evaluate(f"() => {APP}.extensionManager.dialog?.closeDialog?.()")
    page.keyboard.press("Escape")  # the page's own report of the interruption
    keep(studio, "cancelled", side)


def main() -> None:
    """All of them."""
    STATES.mkdir(exist_ok=True)
    with in_a_studio() as studio:
        of_the_gallery(studio)
        of_the_panel(studio)


if __name__ == "__main__":
    main()
