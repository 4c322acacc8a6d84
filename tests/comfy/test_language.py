"""The page in Chinese: gallery, panel and browser take their words from locales/."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, POCKET, drop, open_page

SET_LOCALE = f"(value) => {APP}.extensionManager.setting.set('Comfy.Locale', value)"
TOGGLE = f"(tab) => {APP}.extensionManager.sidebarTab.toggleSidebarTab(tab)"
TITLES = f"() => {APP}.graph.nodes.map((n) => n.title)"


@pytest.fixture
def chinese(page: Any, server: Any) -> Iterator[Any]:
    """The page of a user who has chosen Chinese, with a workflow on it."""
    open_page(page, server.url)
    page.evaluate(SET_LOCALE, "zh")
    open_page(page, server.url)
    drop(page, POCKET.parent / "workflows" / "apply_effect_pocket.json")
    page.locator(".cl-cell").first.wait_for()
    yield page
    page.evaluate(SET_LOCALE, "en")
    open_page(page, server.url)


def test_gallery_panel_and_browser_speak_chinese(chinese: Any) -> None:
    assert "选择特效" in chinese.evaluate(TITLES)
    assert chinese.get_by_label("搜索特效").is_visible()
    assert "全部" in chinese.get_by_label("类别").inner_text()
    chinese.get_by_role("button", name="+ 然后").wait_for()
    chinese.evaluate(TOGGLE, "collectionlora.distillation")
    chinese.get_by_text("请运行含有“蒸馏合集”的工作流").or_(chinese.get_by_text("已停止")).or_(
        chinese.get_by_text("已完成")
    ).first.wait_for()
    chinese.evaluate(TOGGLE, "collectionlora.collections")
    browser = chinese.locator(".cl-browser")
    browser.get_by_text("种特效").first.wait_for()
    chinese.evaluate(TOGGLE, "collectionlora.collections")
