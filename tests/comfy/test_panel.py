"""The distillation panel: live, after a reload, in two browsers, cancel and save."""

from __future__ import annotations

import json
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


def in_words(lines: list[list[float]]) -> str:
    """How many previews have their own teacher's image as the nearest one."""
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
    assert re.search(r"[0-9.]+ s each, \d+ (s|min|h) left, \d+\.\d GiB", panel.inner_text())
    assert panel.locator("canvas").first.evaluate(DRAWN)
    assert {"fm", "bs", "ts", "fake"} <= set(panel.locator("table td:first-child").all_inner_texts())
    assert "student and fake score" in panel.locator("pre").inner_text()
    panel.get_by_label("Curves", exact=True).select_option("effects")
    assert {"thermal", "sketch"} <= set(panel.locator("table td:first-child").all_inner_texts())
    page.wait_for_function(
        "() => [...document.querySelectorAll('.cl-panel img')].every((one) => one.naturalWidth === 128)",
        timeout=30_000,
    )

    nearest, alike = panel.locator("canvas.cl-matrix").all()
    assert "Most alike: " in alike.get_attribute("aria-label")
    assert re.search("[0-2] of 2 are nearest to their own", nearest.get_attribute("aria-label"))
    assert nearest.evaluate(DRAWN)
    assert alike.evaluate(DRAWN)
    panel.get_by_label("Preview of which cycle").fill("0")
    assert "after 0 cycles" in panel.inner_text()
    story = server.get("/collectionlora/run")
    firsts = [story["previews"][one["name"]][0] for one in story["shown"]]
    assert [(one["title"], one["given"]) for one in story["shown"]] == [("Thermal", False), ("Sketch", False)]
    assert [one["cycle"] for one in firsts] == [0, 0]
    assert nearest.get_attribute("aria-label").startswith(in_words([one["like"] for one in firsts]))
    assert panel.locator("figcaption").all_inner_texts() == ["source", "teacher", "after 0 cycles"]
    thermal = panel.locator("img").nth(1).get_attribute("src")
    panel.get_by_label("Curves", exact=True).press("w")  # a shortcut of the page: another tab of the sidebar
    page.wait_for_timeout(300)
    assert panel.is_visible()
    panel.get_by_label("Effect", exact=True).select_option("Sketch")
    assert panel.locator("img").nth(1).get_attribute("src") == thermal.replace("thermal", "sketch")
    assert panel.locator("img").nth(2).get_attribute("alt").startswith("Sketch: after ")

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
            "() => document.querySelector('.cl-panel').textContent.includes('Cancelled.')",
            timeout=60_000,
        )
    other.close()
    story = server.get("/collectionlora/run")
    lately = {name: line["loss"][-20:] for name, line in story["losses"].items()}
    rows = panel.locator("table tr").all()
    shown = {row.locator("td").first.inner_text(): float(row.locator("td").last.inner_text()) for row in rows}
    # what the page added up, event by event, is what the server did
    assert shown == {name: pytest.approx(sum(some) / len(some), rel=0.01) for name, some in lately.items()}
    assert "collection.safetensors" in status.inner_text()
    assert server.wait(watched)["status"]["status_str"] == "error"
    assert read_catalogue(collection).training["cycles"] >= saved


def listening(page: Any) -> int:
    """How many panels read the story when the connection is back."""
    asked: list[str] = []

    def note(request: Any) -> None:
        if "/collectionlora/run" in request.url:
            asked.append(request.url)

    page.wait_for_timeout(500)  # a new panel reads it too
    page.on("request", note)
    page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    page.wait_for_timeout(500)
    page.remove_listener("request", note)
    return len(asked)


@pytest.fixture
def fresh(page: Any, server: Any) -> Iterator[Any]:
    """A page of another browser: what it opens is not opened again in the one of the other tests."""
    fresh = page.context.browser.new_page()
    open_page(fresh, server.url)
    yield fresh
    fresh.close()


def test_only_panels_of_nodes_in_the_graph_listen(fresh: Any) -> None:
    fresh.evaluate(f"() => {APP}.graph.rootGraph.clear()")
    assert listening(fresh) == 0
    fresh.evaluate(
        f"() => {{ const node = window.LiteGraph.createNode('CollectionLoraDistil'); {APP}.graph.add(node);"
        " node.clone().serialize(); }"  # as a copy to the clipboard does
    )
    assert listening(fresh) == 1
    fresh.evaluate(f"() => {{ {APP}.graph.convertToSubgraph(new Set([{APP}.graph.nodes[0]])); }}")
    assert listening(fresh) == 1
    fresh.evaluate(f"() => {APP}.loadGraphData({APP}.graph.rootGraph.serialize())")  # as undo does
    assert listening(fresh) == 1
    fresh.evaluate(f"() => {{ {APP}.graph.remove({APP}.graph.nodes[0]); }}")
    assert listening(fresh) == 0


LINE = {"cycle": [0, 1], "loss": [1.0, 0.5]}
STORY = {
    "told": 5,
    "prompt_id": "asked",
    "node": "7",
    "name": "<b>run</b>",
    "phase": "cycles",
    "cycles": 10,
    "cycle": 2,
    "losses": {"<i>fm</i>": LINE},
    "effects": {"<img src=x>": LINE},
    "shown": [],
    "previews": {},
    "skipped": 3,
    "plan": "<u>plan</u>",
    "prompts": {"names": ["<b>one</b>", "<i>two</i>"], "matrix": [[1, 0.5], [0.5, 1]]},
}
TOLD = "(news) => window.comfyAPI.api.api.dispatchCustomEvent('collectionlora.run', news)"


class Told:
    """A server with this story, which it answers with when `held` is let go."""

    def __init__(self, page: Any) -> None:
        self.page, self.story, self.held, self.answers = page, json.loads(json.dumps(STORY)), False, []

    def answer(self, route: Any) -> None:
        body = json.dumps(self.story)
        self.answers.append(lambda: route.fulfill(body=body, content_type="application/json"))
        if not self.held:
            self.let_go()

    def let_go(self) -> None:
        while self.answers:
            self.answers.pop(0)()

    def news(self, **news: Any) -> None:
        self.page.evaluate(TOLD, {"prompt_id": "asked", "node": "7", **news})

    def state(self, words: str) -> None:
        self.page.locator(".cl-panel").get_by_text(words).first.wait_for()

    def losses(self) -> list[str]:
        found: list[str] = self.page.locator(".cl-panel td:last-child").all_inner_texts()
        return found


@pytest.fixture
def told(page: Any, server: Any) -> Iterator[Told]:
    """The open panel, and the story that it is told."""
    open_page(page, server.url)
    told = Told(page)
    page.route("**/collectionlora/run*", told.answer)
    page.evaluate(TOGGLE)
    told.state("cycle 2 of 10")
    yield told
    page.unroute("**/collectionlora/run*")
    page.evaluate(TOGGLE)


def test_news_that_arrive_while_the_story_is_read_are_neither_lost_nor_added_twice(told: Told) -> None:
    told.held = True
    told.page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    told.page.wait_for_timeout(200)
    told.news(told=5, phase="cycles", cycle=2, loss={"<i>fm</i>": 0.5})
    told.news(told=6, phase="cycles", cycle=3, loss={"<i>fm</i>": 0.9})
    told.news(told=7, phase="ended", ended="", kept="here.safetensors")
    told.let_go()
    told.state("Complete. Kept in here.safetensors")
    assert told.losses() == ["0.800"]


def test_news_that_were_missed_are_read(told: Told) -> None:
    told.story |= {"told": 9, "cycle": 8}
    told.news(told=8, phase="cycles", cycle=7, loss={"<i>fm</i>": 9})
    told.state("cycle 8 of 10")
    assert told.losses() == ["0.750"]
    told.story |= {"told": 12, "phase": "ended", "ended": "for a reason"}
    told.page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    told.state("Stopped: for a reason")


def test_another_nodes_run_in_the_same_prompt_is_another_run(told: Told) -> None:
    told.news(node="8", told=6, phase="cycles", cycle=3, loss={"<i>fm</i>": 9})
    told.page.wait_for_timeout(300)
    assert told.losses() == ["0.750"]
    told.story |= {"node": "8", "name": "the other"}
    told.news(node="8", told=5, phase="cycles", cycle=3, loss={"<i>fm</i>": 9})
    told.state("the other")


def test_names_stay_text_and_skipped_cycles_are_said(told: Told) -> None:
    panel = told.page.locator(".cl-panel")
    assert panel.locator("h3").first.inner_text() == "<b>run</b>"
    assert "3 skipped" in panel.inner_text()
    assert panel.locator("td:first-child").all_inner_texts() == ["<i>fm</i>"]
    panel.get_by_label("Curves", exact=True).select_option("effects")
    assert panel.locator("td:first-child").all_inner_texts() == ["<img src=x>"]
    assert panel.locator("pre").inner_text() == "<u>plan</u>"
    told.news(told=6, phase="ended", ended="<b>reason</b>", kept="<i>file</i>")
    told.state("Stopped: <b>reason</b>. Kept in <i>file</i>")
    assert panel.locator("b, i, u").count() == 0


def test_curves_of_many_effects_show_the_chosen_one(told: Told) -> None:
    names = [f"effect {number}" for number in range(50)]
    told.story |= {
        "effects": dict.fromkeys(names, LINE),
        "shown": [{"name": name, "title": name.upper(), "given": False} for name in names],
    }
    told.page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    panel = told.page.locator(".cl-panel")
    panel.get_by_label("Curves", exact=True).select_option("effects")
    panel.get_by_label("Effect", exact=True).select_option("EFFECT 9")
    colours = panel.locator(".cl-dot").evaluate_all("dots => dots.map(dot => dot.style.background)")
    assert len(colours) == 50
    assert len({*colours[:9], *colours[10:]}) == 1
    assert colours[9] not in colours[:9]


def test_the_matrix_names_its_columns_and_has_every_effect(told: Told) -> None:
    names = [f"effect {number}" for number in range(8)]
    like = [[float(row == column) for column in range(8)] for row in range(8)]
    told.story |= {
        "shown": [{"name": name, "title": name, "given": name == names[0]} for name in names],
        # of five effects at the start, of two later, of one never
        "previews": {
            name: [{"cycle": cycle, "like": like[at]} for cycle in (0, 5) if (at < 5) == (cycle == 0)]
            for at, name in enumerate(names[:7])
        },
    }
    told.page.evaluate("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    panel = told.page.locator(".cl-panel")
    panel.get_by_label("Effect", exact=True).select_option("effect 6")
    told.state("7 of 7 are nearest to their own")
    assert panel.locator("figcaption").all_inner_texts() == ["source", "teacher", "after 5 cycles"]
    panel.get_by_label("Effect", exact=True).select_option("effect 0")
    told.state("5 of 5 are nearest to their own")
    assert panel.locator("figcaption").all_inner_texts() == ["source", "your picture", "after 0 cycles"]
    matrix = panel.locator("canvas.cl-matrix").first
    above = "(canvas) => canvas.getContext('2d').getImageData(canvas.width / 2, 0, canvas.width / 2, 60)"
    assert matrix.evaluate(f"{above}.data.some(value => value > 0)")
    matrix.hover(position={"x": 92, "y": 92})
    assert matrix.get_attribute("title") == "effect 0 and effect 0: 1.00"


def change(page: Any, what: str) -> None:
    """Change the graph in one step of undo."""
    page.evaluate(
        f"() => {{ {APP}.canvas.emitBeforeChange(); {what.replace('GRAPH', APP + '.graph')};"
        f" {APP}.canvas.emitAfterChange(); }}"
    )


def undo(page: Any) -> None:
    """Undo, and wait for a panel that is seen."""
    page.evaluate("() => document.activeElement?.blur()")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(500)
    page.wait_for_function("() => document.querySelector('.cl-panel')?.clientHeight > 50")


def on_a_node(page: Any, server: Any, vue: bool) -> Any:
    """The page with a node of ours, and the panel on it."""
    open_page(page, server.url)
    page.evaluate(f"(vue) => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    change(
        page,
        "GRAPH.clear(); const node = LiteGraph.createNode('CollectionLoraDistil'); node.pos = [300, 60];"
        " GRAPH.add(node); window.ours = node;",
    )
    page.evaluate(
        f"() => {{ const {{ canvas }} = {APP}; canvas.ds.offset = [0, 0]; canvas.ds.scale = 1;"
        " canvas.setDirty(true, true); }"
    )
    return page.locator(".cl-panel")


@pytest.mark.parametrize("vue", [False, True])
def test_the_node_shows_its_own_runs(page: Any, server: Any, vue: bool) -> None:
    told = Told(page)
    page.route("**/collectionlora/run*", told.answer)
    try:
        panel = on_a_node(page, server, vue)
        told.state("cycle 2 of 10")
        told.story["node"] = node = str(page.evaluate("() => window.ours.id"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        workflow = page.evaluate(f"() => {APP}.graph.id")
        told.news(node="another", told=1, phase="cycles", cycle=1)
        told.news(node=node, workflow="another", told=1, phase="cycles", cycle=1)
        page.wait_for_timeout(300)
        assert not [url for url in asked if "/collectionlora/run" in url]
        told.story |= {"told": 9, "cycle": 8}
        told.news(node=node, workflow=workflow, told=9, phase="cycles", cycle=8)
        told.state("cycle 8 of 10")
        queries = [url.split("?")[1] for url in asked if "/collectionlora/run" in url]
        assert queries == [f"node={node}&workflow={workflow}"]
        values = page.evaluate("() => window.ours.serialize().widgets_values")
        assert len(values) == 8  # the panel is none of them
        height = panel.bounding_box()["height"]
        page.evaluate(
            "() => { const [, height] = window.ours.size; window.ours.setSize([500, height + 200]);"
            f" {APP}.canvas.setDirty(true, true); }}"
        )
        page.wait_for_function(
            "(height) => document.querySelector('.cl-panel').clientHeight > height + 50", arg=height
        )
        told.story["node"] = node
        change(page, "window.ours.widgets.find((w) => w.name === 'name').value = 'other'")
        undo(page)
        assert page.evaluate(f"() => {APP}.graph.nodes[0] !== window.ours")  # it was made anew
        told.state("cycle 8 of 10")
        change(page, f"GRAPH.remove({APP}.graph.nodes[0])")
        page.wait_for_function("() => !document.querySelector('.cl-panel')")
        undo(page)
        told.state("cycle 8 of 10")
    finally:
        page.unroute("**/collectionlora/run*")
        page.evaluate(f"() => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
