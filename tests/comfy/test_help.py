"""The help panel of ComfyUI's page shows our help pages with their pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, open_page

SELECT = (
    f"() => {{ const graph = {APP}.graph; graph.clear();"
    " const node = window.LiteGraph.createNode('CollectionLoraEffect'); node.pos = [400, 300];"
    f" graph.add(node); {APP}.canvas.selectNode(node); {APP}.canvas.ds.offset = [0, 0];"
    f" {APP}.canvas.ds.scale = 1; {APP}.canvas.setDirty(true, true); }}"
)
LOCALE = f"(value) => {APP}.extensionManager.setting.set('Comfy.Locale', value)"


@pytest.mark.parametrize(("language", "words"), [("en", "By keyboard"), ("zh", "键盘操作")])
def test_the_help_panel_shows_words_and_picture(page: Any, server: Any, language: str, words: str) -> None:
    open_page(page, server.url)
    page.evaluate(LOCALE, language)
    page.wait_for_timeout(1000)  # the page draws itself anew
    try:
        page.evaluate(SELECT)
        page.get_by_test_id("info-button").click()
        page_of_help = page.locator(".node-help-content")
        page_of_help.get_by_text(words).wait_for()
        picture = page_of_help.locator("img").first
        assert picture.get_attribute("src").endswith("/docs/CollectionLoraEffect/node.jpg")
        picture.evaluate("(image) => image.decode()")  # fails for what is no picture
        assert picture.evaluate("(image) => image.naturalWidth") > 200
        assert picture.get_attribute("alt")
    finally:
        page.evaluate(LOCALE, "en")
