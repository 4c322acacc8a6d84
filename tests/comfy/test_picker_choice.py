"""What is chosen stays chosen, whatever becomes of page, file and graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
from gallery import NODE, SHOW_NODE, cell, changed_catalogue, chosen, load
from graphs import APP


def test_the_choice_survives_the_api_format(picker: Any) -> None:
    cell(picker, "neon").click()
    cell(picker, "confetti").click(modifiers=["Shift"])
    graph = picker.evaluate(f"async () => (await {APP}.graphToPrompt()).output")
    picker.evaluate(f"(graph) => {APP}.loadApiJson(graph, 'kept')", graph)
    picker.wait_for_timeout(1000)
    picker.evaluate(SHOW_NODE)
    assert chosen(picker) == ("neon", "confetti")
    assert "cl-second" in cell(picker, "confetti").get_attribute("class")


def test_the_choice_survives_reload_copy_and_a_change_of_mode(picker: Any, reopen: Any) -> None:
    cell(picker, "neon").click()
    cell(picker, "confetti").click(modifiers=["Shift"])
    reopen()
    assert chosen(picker) == ("neon", "confetti")
    assert "cl-first" in cell(picker, "neon").get_attribute("class")
    on = picker.evaluate(f"() => {APP}.extensionManager.setting.get('Comfy.VueNodes.Enabled')")
    picker.evaluate(f"(on) => {APP}.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", not on)
    picker.wait_for_timeout(1500)
    assert chosen(picker) == ("neon", "confetti")
    assert "cl-second" in cell(picker, "confetti").get_attribute("class")
    cell(picker, "sketch").filter(visible=True).click()
    assert chosen(picker) == ("sketch", "confetti")
    cell(picker, "neon").filter(visible=True).click()
    copied = picker.evaluate(
        f"() => {{ const copy = {NODE}.clone(); {APP}.graph.add(copy);"
        " const found = ['effect', 'then'].map((n) => copy.widgets.find((w) => w.name === n).value);"
        f" {APP}.graph.remove(copy); return found; }}"
    )
    assert copied == ["neon", "confetti"]


def test_no_effect_is_chosen_twice(picker: Any) -> None:
    cell(picker, "neon").click()
    cell(picker, "confetti").click(modifiers=["Shift"])
    cell(picker, "confetti").click()
    assert chosen(picker) == ("confetti", "none")


def test_an_effect_by_a_link_is_not_the_gallerys_to_choose(picker: Any, server: Any) -> None:
    cell(picker, "sketch").click()
    picker.wait_for_timeout(300)
    kept = server.base_directory / "user" / "default" / "collectionlora.json"
    before = json.loads(kept.read_text())
    picker.evaluate(
        f"() => {{ const graph = {APP}.graph, chooser = {NODE};"
        " const names = LiteGraph.createNode('PrimitiveNode'); graph.add(names);"
        " names.connect(0, chooser, chooser.findInputSlot('effect')); }"
    )
    picker.locator(".cl-chosen").filter(has_text="The effect comes by a link.").wait_for()
    assert picker.locator(".cl-missing").count() == 0
    cell(picker, "neon").click()
    picker.wait_for_timeout(300)
    assert chosen(picker) == ("sketch", "none")
    assert json.loads(kept.read_text()) == before


def test_a_second_effect_by_a_link_is_not_the_gallerys_to_choose(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(
        f"() => {{ const graph = {APP}.graph, chooser = {NODE};"
        " const names = LiteGraph.createNode('PrimitiveNode'); graph.add(names);"
        " names.connect(0, chooser, chooser.findInputSlot('then')); }"
    )
    told = picker.locator(".cl-chosen").filter(has_text="The second effect comes by a link.")
    told.wait_for()
    assert picker.locator(".cl-add").count() == 0
    cell(picker, "confetti").click(modifiers=["Shift"])
    picker.wait_for_timeout(300)
    assert chosen(picker)[0] == "sketch"
    cell(picker, "neon").click()
    picker.wait_for_timeout(300)
    assert chosen(picker)[0] == "neon"
    assert told.count() == 1


def test_a_second_effect_can_be_removed_where_the_first_comes_by_a_link(picker: Any) -> None:
    cell(picker, "sketch").click()
    cell(picker, "confetti").click(modifiers=["Shift"])
    picker.evaluate(
        f"() => {{ const graph = {APP}.graph, chooser = {NODE};"
        " const names = LiteGraph.createNode('PrimitiveNode'); graph.add(names);"
        " names.connect(0, chooser, chooser.findInputSlot('effect')); }"
    )
    picker.locator(".cl-chosen").filter(has_text="The effect comes by a link.").wait_for()
    picker.locator(".cl-chosen .cl-drop").click()
    picker.wait_for_timeout(300)
    assert chosen(picker)[1] == "none"
    assert picker.locator(".cl-chosen .cl-drop").count() == 0
    picker.locator(".cl-add").click()
    cell(picker, "neon").click()
    picker.wait_for_timeout(300)
    assert chosen(picker)[1] == "neon"


def test_a_missing_file_is_named_and_the_choice_kept(picker: Any) -> None:
    cell(picker, "sketch").click()
    load(picker, "gone.safetensors")
    assert "gone.safetensors: no such file" in picker.locator(".cl-message").inner_text()
    assert chosen(picker)[0] == "sketch"
    load(picker, "pocket (built in)")
    assert "cl-first" in cell(picker, "sketch").get_attribute("class")


def test_a_missing_effect_is_named_and_kept(picker: Any, server: Any) -> None:
    cell(picker, "sketch").click()
    changed_catalogue(
        server, "less.safetensors", lambda effects: [e for e in effects if e["name"] != "sketch"]
    )
    load(picker, "less.safetensors")
    assert picker.locator(".cl-chip.cl-missing").inner_text() == "sketch (not in this file)"
    assert chosen(picker) == ("sketch", "none")


def test_the_nodes_own_lists_keep_the_files_effects_when_the_page_reads_its_lists_anew(
    picker: Any, server: Any
) -> None:
    changed_catalogue(server, "first.safetensors", lambda effects: effects[:1])
    load(picker, "first.safetensors")
    offered = f"{NODE}.widgets.find((one) => one.name === 'effect').options.values"
    assert picker.evaluate(f"() => {offered}.length") == 1
    picker.evaluate(f"() => {APP}.refreshComboInNodes()")
    picker.wait_for_function(f"() => {offered}.length === 1")


def test_a_choice_can_be_undone_and_done_again(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.wait_for_timeout(200)
    cell(picker, "neon").click()
    picker.wait_for_timeout(200)
    assert chosen(picker)[0] == "neon"
    for keys, expected in (("Control+z", "sketch"), ("Control+y", "neon")):
        picker.evaluate("() => document.activeElement?.blur()")
        picker.keyboard.press(keys)
        picker.wait_for_timeout(600)
        assert chosen(picker)[0] == expected
        assert cell(picker, expected).get_attribute("aria-selected") == "true"


def test_undo_leaves_the_gallery_as_it_is_looked_at(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.wait_for_timeout(200)
    picker.get_by_label("Seed of the random pick").fill("7")
    picker.get_by_label("Search effects").fill("n")  # typed last: the browser itself undoes this
    picker.get_by_label("Size of the pictures").fill("150")
    cell(picker, "neon").click()
    picker.wait_for_timeout(200)
    picker.evaluate("() => document.activeElement?.blur()")
    picker.keyboard.press("Control+z")
    picker.wait_for_timeout(600)
    assert chosen(picker)[0] == "sketch"
    assert picker.get_by_label("Size of the pictures").input_value() == "150"
    assert picker.get_by_label("Seed of the random pick").input_value() == "7"


def test_the_choice_survives_in_a_subgraph(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(f"() => {{ const graph = {APP}.graph; graph.convertToSubgraph(new Set([{NODE}])); }}")
    picker.wait_for_timeout(300)
    assert chosen(picker) == ("sketch", "none")
    picker.evaluate(
        f"() => {{ const [group] = {APP}.graph.nodes.filter((n) => n.isSubgraphNode?.());"
        f" {APP}.canvas.openSubgraph(group.subgraph, group); }}"
    )
    picker.wait_for_timeout(800)
    picker.evaluate(SHOW_NODE.replace(f"{APP}.graph.nodes", f"{APP}.canvas.graph.nodes"))
    cell(picker, "neon").filter(visible=True).click()
    assert chosen(picker) == ("neon", "none")
    picker.evaluate(f"() => {APP}.canvas.setGraph({APP}.graph.rootGraph)")


def test_a_gallery_in_a_subgraph_ends_with_its_graph(picker: Any) -> None:
    picker.evaluate(f"() => {{ {APP}.graph.convertToSubgraph(new Set([{NODE}])); }}")
    picker.evaluate(f"() => {{ window.left = {INSIDE}.collectionLoraGallery; }}")
    picker.evaluate(f"() => {APP}.loadGraphData({APP}.graph.rootGraph.serialize())")
    retired = "(gallery) => gallery.root.classList.contains('cl-retired')"
    assert picker.evaluate(f"() => ({retired})(window.left)")
    assert not picker.evaluate(f"() => ({retired})({INSIDE}.collectionLoraGallery)")


def test_copies_and_subgraphs_throw_nothing(picker: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(f"() => {{ document.activeElement.blur(); {APP}.canvas.selectItems([{NODE}]); }}")
    for keys in ("Control+c", "Control+v"):
        picker.keyboard.press(keys)
        picker.wait_for_timeout(500)
    values = picker.evaluate(
        f"() => {APP}.graph.nodes.filter((n) => n.comfyClass === 'CollectionLoraEffect')"
        ".map((n) => n.widgets[0].value)"
    )
    assert values == ["sketch", "sketch"]
    picker.evaluate(f"() => {APP}.graph.convertToSubgraph(new Set([{NODE}]))")
    picker.evaluate("() => { window.LiteGraph.createNode('CollectionLoraEffect'); }")
    picker.wait_for_timeout(500)


HOST = f"{APP}.graph.rootGraph.nodes.find((n) => n.isSubgraphNode?.())"
INSIDE = f"{HOST}.subgraph.nodes.find((n) => n.comfyClass === 'CollectionLoraEffect')"
PROMOTE = (
    f"() => {{ {APP}.graph.convertToSubgraph(new Set([{NODE}])); const node = {INSIDE};"
    " node.graph.addInput('effect', 'COMBO').connect(node.inputs[node.findInputSlot('effect')], node); }"
)
OPEN = f"() => {APP}.canvas.openSubgraph({HOST}.subgraph, {HOST})"
SHOW_INSIDE = SHOW_NODE.replace(f"{APP}.graph.nodes", f"{APP}.canvas.graph.nodes")
LEAVE = f"() => {APP}.canvas.setGraph({APP}.graph.rootGraph)"


def test_gallery_and_subgraph_node_have_one_choice(picker: Any, server: Any) -> None:
    cell(picker, "sketch").click()
    picker.evaluate(PROMOTE)
    picker.evaluate(OPEN)
    picker.wait_for_timeout(800)
    picker.evaluate(SHOW_INSIDE)
    cell(picker, "thermal").filter(visible=True).click()
    assert picker.evaluate(f"() => {HOST}.widgets[0].value") == "thermal"
    assert chosen(picker) == ("thermal", "none")

    picker.evaluate(LEAVE)
    picker.evaluate(
        f"() => {{ {APP}.canvas.emitBeforeChange(); {HOST}.widgets[0].value = 'neon';"
        f" {APP}.canvas.emitAfterChange(); }}"
    )
    assert chosen(picker) == ("neon", "none")
    shows = f"() => {INSIDE}.collectionLoraGallery.choice.first"
    picker.wait_for_function(f"() => ({shows})() === 'neon'")
    graph = picker.evaluate(f"() => {APP}.graph.rootGraph.serialize()")
    picker.evaluate(f"(graph) => {APP}.loadGraphData(graph)", json.loads(json.dumps(graph)))
    picker.wait_for_function(f"() => ({shows})() === 'neon'")
    assert chosen(picker) == ("neon", "none")
