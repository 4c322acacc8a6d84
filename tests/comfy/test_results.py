"""What a node has said stays: undo makes the node anew, and a workflow may run while another one is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, open_page

TEXTS = "() => [...document.querySelectorAll('textarea[readonly]')].map((area) => area.value)"
BUILD = (
    "() => { const graph = APP.graph; graph.clear();"
    " const [model, load, info] = ['PocketModel', 'Load', 'Info'].map((name) => {"
    "  const node = LiteGraph.createNode(`CollectionLora${name}`); graph.add(node); return node; });"
    " load.pos = [300, 100]; info.pos = [600, 100]; info.setSize([400, 300]);"
    " model.connect(0, load, 0); load.connect(1, info, 0);"
    " APP.canvas.ds.offset = [0, 0]; APP.canvas.ds.scale = 1; APP.canvas.setDirty(true, true); }"
).replace("APP", APP)
MOVE = (
    "() => { APP.canvas.emitBeforeChange(); APP.graph.nodes[0].pos = [10, 400];"
    " APP.canvas.emitAfterChange(); }"
).replace("APP", APP)


@pytest.mark.parametrize("vue", [False, True])
def test_a_text_survives_undo(page: Any, server: Any, vue: bool) -> None:
    open_page(page, server.url)
    page.evaluate(f"(vue) => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    try:
        page.evaluate(BUILD)
        page.evaluate(f"() => {APP}.queuePrompt(0)")
        page.wait_for_function(f"() => ({TEXTS})().some((text) => text.includes('50 effects'))")
        page.evaluate(MOVE)
        page.evaluate(f"() => {{ window.before = {APP}.graph.nodes[0]; document.activeElement?.blur(); }}")
        page.keyboard.press("Control+z")
        page.wait_for_function(f"() => {APP}.graph.nodes[0] !== window.before")
        page.wait_for_function(f"() => ({TEXTS})().some((text) => text.includes('50 effects'))")
    finally:
        page.evaluate(f"() => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
