"""Take the pictures of workflows, nodes and sidebar tabs anew, in a real ComfyUI and a real browser.

usage: python docs/take_pictures.py [WORKFLOW ...]   (all of workflows/ by default; ten minutes on two cores)

Writes workflows/*.jpg, web/docs/NODE/node.jpg and more beside it for the help pages, and docs/comfyui_*.jpg.
Workflows of the real model are shown as they open, since their weights are not here; all others are run.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))
from graphs import APP, PICTURES, open_page
from server import ROOT, Server, find_comfyui, running

CHROMIUM = "/usr/bin/chromium"
WORKFLOW_WIDTH, DOC_WIDTH = 1660, 1400
WINDOW = {"width": 1750, "height": 980}
MARGIN, TITLE = 20, 30
TAB = f"(id) => {APP}.extensionManager.command.execute('Workspace.ToggleSidebarTab.collectionlora.' + id)"
BOXES = (
    f"() => {APP}.graph.nodes.map((n) => ({{ type: n.comfyClass ?? n.type, x: n.pos[0],"
    f" y: n.pos[1] - {TITLE},"
    " right: n.pos[0] + n.size[0], bottom: n.pos[1] + n.size[1] }))"
)
MOVE = (
    f"([scale, x, y]) => {{ const {{ ds }} = {APP}.canvas; ds.scale = scale; ds.offset = [x, y];"
    f" {APP}.canvas.setDirty(true, true); }}"
)
ALONE = (
    f"(type) => {{ {APP}.graph.clear(); const node = window.LiteGraph.createNode(type);"
    f" node.pos = [100, 100]; {APP}.graph.add(node); }}"
)
NO_PATHS = (
    "(base) => { for (const one of document.querySelectorAll('textarea'))"
    " one.value = one.value.replaceAll(base, 'ComfyUI');"
    " const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
    " while (texts.nextNode()) if (texts.currentNode.data.includes(base))"
    " texts.currentNode.data = texts.currentNode.data.replaceAll(base, 'ComfyUI'); }"
)
SETTINGS = {
    "Comfy.VueNodes.Enabled": True,
    "Comfy.EnableTooltips": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
UNWANTED = ".no-drag.fixed.top-0.right-0 { display: none !important; }"  # the menu


class Studio:
    """The page, and a server behind it."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        open_page(page, server.url)
        for one in SETTINGS.items():
            page.evaluate(f"([name, value]) => {APP}.extensionManager.setting.set(name, value)", one)
        page.add_style_tag(content=UNWANTED)

    def vue(self, on: bool) -> None:
        """The page's own nodes, or those drawn on the canvas."""
        setting = ["Comfy.VueNodes.Enabled", on]
        self.page.evaluate(f"([name, value]) => {APP}.extensionManager.setting.set(name, value)", setting)
        self.page.wait_for_timeout(1500)

    def open(self, name: str) -> None:
        """Load a workflow into a page that shows nothing but the graph."""
        self.page.set_viewport_size(WINDOW)
        content = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        self.page.evaluate(f"(graph) => {APP}.loadGraphData(graph)", content)
        self.page.wait_for_timeout(3000)
        self.page.keyboard.press("Escape")  # the list of missing models

    def run(self) -> None:
        self.page.evaluate(f"() => {APP}.queuePrompt(0)")
        self.page.wait_for_timeout(2000)

    def wait(self) -> None:
        while any(self.server.get("/queue").values()):
            time.sleep(1)
        self.page.wait_for_timeout(3000)
        self.page.evaluate(NO_PATHS, str(self.server.base_directory))

    def focus(self) -> None:
        """Hide all but the graph, or show all again."""
        self.page.evaluate(f"() => {APP}.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.wait_for_timeout(500)

    def frame(self, scale: float) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Move the graph into the upper left corner and make the window as large as it."""
        boxes = self.page.evaluate(BOXES)
        left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
        width = max(box["right"] for box in boxes) - left
        height = max(box["bottom"] for box in boxes) - top
        size = {"width": round(width * scale) + 2 * MARGIN, "height": round(height * scale) + 2 * MARGIN}
        self.page.set_viewport_size(size)
        self.page.wait_for_timeout(300)
        self.page.evaluate(MOVE, [scale, MARGIN / scale - left, MARGIN / scale - top])
        self.page.wait_for_timeout(1500)
        return [{**box, "x": box["x"] - left, "y": box["y"] - top} for box in boxes], size

    def graph(self, path: Path) -> None:
        """The whole graph, as wide as pictures of workflows are."""
        boxes = self.page.evaluate(BOXES)
        wide = max(box["right"] for box in boxes) - min(box["x"] for box in boxes)
        self.frame((WORKFLOW_WIDTH - 2 * MARGIN) / wide)
        save(self.page.screenshot(), path)

    def nodes(self) -> None:
        """Each node of ours that this graph has, for its help page."""
        for box in self.page.evaluate(BOXES):
            if not box["type"].startswith("CollectionLora"):
                continue
            size = {
                "width": round(box["right"] - box["x"]) + 16,
                "height": round(box["bottom"] - box["y"]) + 16,
            }
            self.page.set_viewport_size(size)
            self.page.wait_for_timeout(300)
            self.page.evaluate(MOVE, [1, 8 - box["x"], 8 - box["y"]])
            self.page.wait_for_timeout(700)
            save(self.page.screenshot(), ROOT / "web" / "docs" / box["type"] / "node.jpg")

    def tab(self, part: str, picture: str, help_page: str, name: str) -> None:
        """The window with a tab open, for the read-me; the tab alone, for a help page."""
        self.page.set_viewport_size(WINDOW)
        self.page.evaluate(f"() => {APP}.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(2000)
        save(self.page.screenshot(), ROOT / "docs" / picture, DOC_WIDTH)
        box = self.page.locator(part).bounding_box()
        box["height"] = min(box["height"], WINDOW["height"] - box["y"])  # it scrolls
        save(self.page.screenshot(clip=box), ROOT / "web" / "docs" / help_page / name)


def save(shot: bytes, path: Path, width: int | None = None) -> None:
    """A screenshot as JPEG."""
    with Image.open(io.BytesIO(shot)) as picture:
        shown = picture.convert("RGB")
        if width:
            size = width, round(picture.height * width / picture.width)
            shown = shown.resize(size, Image.Resampling.LANCZOS)
        shown.save(path, quality=82, optimize=True)
    print(path.relative_to(ROOT), shown.size, f"{path.stat().st_size // 1024} KiB", flush=True)


def take(studio: Studio, name: str) -> None:
    """All pictures for which this workflow is opened."""
    page = studio.page
    studio.open(name)
    if name == "distil_pocket":
        page.evaluate(TAB, "distillation")
    if not name.endswith("qwen"):
        studio.run()
    if name == "distil_pocket":
        while studio.server.answer("/collectionlora/run").get("cycle", 0) < 22:
            time.sleep(0.5)
        studio.tab(".cl-panel:not(.cl-on-node)", "comfyui_distil.jpg", "CollectionLoraDistil", "panel.jpg")
        nearest = page.locator(".cl-panel:not(.cl-on-node) .cl-part .cl-part").screenshot()
        save(nearest, ROOT / "web" / "docs" / "CollectionLoraDistil" / "nearest.jpg")
        page.evaluate(TAB, "distillation")
    studio.wait()
    if name == "apply_effect_pocket":
        page.evaluate(TAB, "collections")
        page.locator('.cl-browser button[data-file="pocket (built in)"]').click()
        page.wait_for_timeout(2000)
        studio.tab(".cl-browser", "comfyui_browser.jpg", "CollectionLoraLoad", "browser.jpg")
        page.evaluate(TAB, "collections")
    studio.focus()
    studio.graph(ROOT / "workflows" / f"{name}.jpg")
    if name in ("apply_effect_pocket", "contact_sheet", "distil_pocket"):
        studio.nodes()
    if name == "apply_effect_pocket":
        with Image.open(ROOT / "workflows" / f"{name}.jpg") as whole:
            size = DOC_WIDTH, round(whole.height * DOC_WIDTH / whole.width)
            whole.resize(size, Image.Resampling.LANCZOS).save(ROOT / "docs" / "comfyui_apply.jpg", quality=82)
        for alone in ("CollectionLoraSigmas", "CollectionLoraTeacher"):  # in no workflow
            page.evaluate(ALONE, alone)
            studio.nodes()
    studio.focus()


@contextmanager
def in_a_studio() -> Iterator[Studio]:
    """Start all, end all."""
    from playwright.sync_api import sync_playwright

    comfyui = find_comfyui()
    assert comfyui, "no ComfyUI found: set COMFYUI_PATH"
    with (
        tempfile.TemporaryDirectory() as folder,
        running(comfyui, Path(folder)) as server,
        sync_playwright() as run,
    ):
        with Image.open(PICTURES[0]) as picture:
            picture.convert("RGB").save(server.base_directory / "input" / "example.png")
        for path in (ROOT / "workflows").glob("*qwen.json"):
            for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
                for model in node["properties"].get("models", []):  # or the page shows errors
                    file = server.base_directory / "models" / model["directory"] / model["name"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(120_000)
        yield Studio(page, server)
        browser.close()


def main() -> None:
    """Take the pictures of these workflows."""
    with in_a_studio() as studio:
        for name in sys.argv[1:] or sorted(path.stem for path in (ROOT / "workflows").glob("*.json")):
            take(studio, name)


if __name__ == "__main__":
    main()
