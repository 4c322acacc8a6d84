"""Picker, panel and collection browser without a mouse and without good eyes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from graphs import APP, POCKET, distil, open_page

TAB = f"(id) => {APP}.extensionManager.sidebarTab.toggleSidebarTab('collectionlora.' + id)"
SET = f"([name, value]) => {APP}.extensionManager.setting.set(name, value)"
CENTRE = (
    f"() => {{ const node = {APP}.graph.nodes.find((n) => n.comfyClass === 'CollectionLoraEffect');"
    f" const canvas = {APP}.canvas; canvas.ds.scale = 1;"
    " canvas.ds.offset = [200 - node.pos[0], 150 - node.pos[1]]; canvas.setDirty(true, true); }"
)
NAMED = "button|textbox|searchbox|spinbutton|combobox|slider|link|img|listbox|option|progressbar|table"
"""Roles that need a name."""

CONTROLS = "button, input, select, textarea, a[href], [tabindex]"
WALKED = (
    "(root) => [...root.querySelectorAll('" + CONTROLS + "')].filter((one) => one.tabIndex >= 0 &&"
    " !one.disabled && one.checkVisibility({ visibilityProperty: true })).map((one, at) =>"
    " (one.dataset.walk = String(at)))"
)
"""Numbers what Tab has to reach."""

FOCUSED = """(root) => {
  const one = document.activeElement;
  if (!root.contains(one)) return null;
  const { outlineStyle, outlineWidth } = getComputedStyle(one);
  return { walk: one.dataset.walk, ring: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 };
}"""

CONTRASTS = """(root) => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (one) => {
    if (!one) return [128, 128, 128, 1];
    const own = rgba(getComputedStyle(one).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(one.parentElement));
  };
  const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const opacity = (one) => (one ? getComputedStyle(one).opacity * opacity(one.parentElement) : 1);
  const found = [];
  for (const one of root.querySelectorAll('*')) {
    const written = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const field = one.matches('input:not([type=range], [type=file])');
    if ((!written && !field) || one.closest('.cl-unseen, :disabled') || !one.checkVisibility()) continue;
    const ground = behind(one);
    const styles = [getComputedStyle(one)];
    if (one.placeholder) styles.push(getComputedStyle(one, '::placeholder'));
    for (const style of styles) {
      const ink = rgba(style.color);
      ink[3] *= opacity(one);
      const [high, low] = [light(over(ink, ground)), light(ground)].sort((a, b) => b - a);
      found.push([one.tagName + '.' + one.className + ' ' + (one.textContent || one.placeholder).slice(0, 30),
        (high + 0.05) / (low + 0.05)]);
    }
  }
  return found;
}"""
"""[element, contrast] of every text, its colours and those behind it mixed as the screen mixes them."""


@pytest.fixture(scope="module")
def distilled(server: Any, lessons: tuple[str, str]) -> None:
    """A short run that the panel shows."""
    server.run(distil("seen", cycles=4))


@pytest.fixture(params=["picker", "picker in Vue nodes", "panel", "browser"])
def part(page: Any, server: Any, request: Any) -> Iterator[Any]:
    """One part of the page, open and filled."""
    open_page(page, server.url)
    name, vue = request.param.split(" ")[0], request.param.endswith("nodes")
    page.evaluate(SET, ["Comfy.VueNodes.Enabled", vue])
    if name == "picker":
        content = json.loads((POCKET.parent / "workflows" / "a_then_b.json").read_text("utf-8"))
        page.evaluate(f"(graph) => {APP}.loadGraphData(graph)", content)
        page.evaluate(CENTRE)
        page.locator(".cl-cell").first.wait_for()
        page.wait_for_timeout(300)
        yield page.locator(".cl-picker")
        return
    if name == "panel":
        request.getfixturevalue("distilled")
        page.evaluate(TAB, "distillation")
        page.locator(".cl-panel .cl-ended").wait_for()
    else:
        page.evaluate(TAB, "collections")
        page.locator('.cl-browser button[data-file="pocket (built in)"]').click()
        page.locator(".cl-browser .cl-effects li").first.wait_for()
    yield page.locator(f".cl-{name}")
    if page.locator(f".cl-{name}").is_visible():
        page.evaluate(TAB, "distillation" if name == "panel" else "collections")


def test_everything_has_a_name(part: Any) -> None:
    lines = [line.strip() for line in part.aria_snapshot().splitlines()]
    bare = [line for line in lines if re.fullmatch(rf"- ({NAMED})(:.*| \[.*)?", line)]
    assert not bare
    assert len(lines) > 20
    assert not part.locator("img:not([alt])").count()
    for slider in part.get_by_role("slider").all():
        label = slider.get_attribute("aria-label")
        assert any(line.startswith(f'- slider "{label}"') and ": " in line for line in lines), lines


def test_tab_reaches_every_control_and_it_is_seen_where_one_is(part: Any) -> None:
    page = part.page
    wanted = set(part.evaluate(WALKED))
    assert len(wanted) >= 2
    assert not part.locator("[tabindex]:not([tabindex='0'], [tabindex='-1'])").count()
    page.locator(f"[data-walk='{min(wanted, key=int)}']").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")  # as the keyboard brings it
    reached = set()
    while (here := part.evaluate(FOCUSED)) and here["walk"] not in reached:
        assert here["ring"], page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
        reached.add(here["walk"])
        page.keyboard.press("Tab")
    assert reached == wanted


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_stands_out_from_what_is_behind_it(part: Any, theme: str) -> None:
    page = part.page
    page.evaluate(SET, ["Comfy.ColorPalette", theme])
    page.wait_for_timeout(600)
    try:
        contrasts = part.evaluate(CONTRASTS)
    finally:
        page.evaluate(SET, ["Comfy.ColorPalette", "dark"])
    assert len(contrasts) > 10
    assert not [f"{name}: {value:.1f}" for name, value in contrasts if value < 4.5]


@pytest.mark.parametrize("part", ["picker", "picker in Vue nodes"], indirect=True)
def test_two_effects_are_picked_swapped_and_removed_by_keys_alone(part: Any) -> None:
    page = part.page
    names = part.locator(".cl-cell").evaluate_all("(all) => all.map((one) => one.dataset.name)")
    chips = part.locator(".cl-chip-text")
    part.locator(".cl-drop").focus()
    page.keyboard.press("Enter")
    assert chips.count() == 1
    page.keyboard.press("Space")  # the focus is on what has taken its place
    assert part.locator(".cl-add").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert part.locator(".cl-add").get_attribute("aria-pressed") == "false"
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    page.keyboard.press("Space")
    assert chips.count() == 2
    assert part.locator(".cl-cell[aria-selected=true]").count() == 2
    assert part.locator(f".cl-cell[data-name={names[-1]}]").get_attribute("aria-selected") == "true"
    before = chips.all_inner_texts()
    part.locator(".cl-swap").focus()
    page.keyboard.press("Enter")
    assert chips.all_inner_texts() == before[::-1]
    page.keyboard.press("Enter")
    assert chips.all_inner_texts() == before

    part.get_by_role("searchbox").focus()
    page.keyboard.type("sketch")
    assert "effects shown: 1" in part.locator(".cl-unseen").inner_text()
    page.keyboard.press("Escape")
    assert part.locator(".cl-cell:not([hidden])").count() == len(names)
    page.keyboard.press("Escape")
    assert not part.evaluate("(root) => root.contains(document.activeElement)")


@pytest.mark.parametrize("part", ["panel", "browser"], indirect=True)
def test_escape_closes_a_tab_and_leads_back_to_its_button(part: Any) -> None:
    part.locator("button:enabled, select").first.focus()
    part.page.keyboard.press("Escape")
    part.wait_for(state="hidden")
    assert "tab-button" in part.page.evaluate("() => document.activeElement.className")


@pytest.mark.parametrize("part", ["browser"], indirect=True)
def test_escape_throws_no_changes_away(part: Any) -> None:
    part.get_by_label("Title of sketch", exact=True).fill("Scribble")
    part.page.keyboard.press("Escape")
    assert "not saved" in part.get_by_role("status").inner_text()
    assert part.get_by_label("Title of sketch", exact=True).input_value() == "Scribble"


@pytest.mark.parametrize("part", ["panel"], indirect=True)
def test_the_state_of_a_run_is_read_out(part: Any) -> None:
    assert "Complete" in part.get_by_role("status").inner_text()
    assert part.get_by_role("progressbar").get_attribute("value") == "4"
    slider = part.get_by_label("Preview of which cycle")
    slider.focus()
    part.page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "after 0 cycles"
    part.page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "after 2 cycles"
    assert "nearest" in part.locator("canvas.cl-matrix").first.get_attribute("aria-label")
