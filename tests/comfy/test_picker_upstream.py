"""What a gallery knows of nodes between it and Load Collection, and of those that choose for its lists."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from gallery import LOADER, NODE, SHIPPED, changed_catalogue, load, shown
from graphs import APP

from collectionlora.collection.file import read_catalogue

FOLLOW = f"() => {APP}.api.dispatchCustomEvent('graphChanged', {{}})"
BETWEEN = (
    f"const graph = {APP}.graph, loader = {LOADER}, chooser = {NODE}, {{ LiteGraph }} = window;"
    " const made = (type) => { const node = LiteGraph.createNode(type); graph.add(node); return node; };"
    " const out = loader.outputs.findIndex((one) => one.type === 'COLLECTION_LORA');"
)


@pytest.fixture
def two(server: Any) -> str:
    """A file of two effects."""
    changed_catalogue(server, "two.safetensors", lambda effects: effects[:2])
    return "two.safetensors"


def test_a_switch_shows_the_side_that_it_is_on(picker: Any, two: str) -> None:
    picker.evaluate(
        f"(file) => {{ {BETWEEN} const other = made('CollectionLoraLoad');"
        " other.widgets[0].value = file; const either = made('ComfySwitchNode'); window.either = either;"
        " loader.connect(out, either, either.findInputSlot('on_false'));"
        " other.connect(out, either, either.findInputSlot('on_true')); either.connect(0, chooser, 0); }",
        two,
    )
    picker.wait_for_timeout(600)
    assert len(shown(picker)) == len(read_catalogue(SHIPPED).effects)
    for on, count in ((True, 2), (False, 50)):
        picker.evaluate("(on) => { window.either.widgets[0].value = on; }", on)
        picker.evaluate(FOLLOW)
        picker.wait_for_timeout(600)
        assert len(shown(picker)) == count


def test_a_node_with_several_collections_is_not_guessed_at(picker: Any) -> None:
    picker.evaluate(
        f"() => {{ {BETWEEN} const other = made('CollectionLoraLoad');"
        " class Either extends LiteGraph.LGraphNode { constructor() { super('Either of two');"
        " for (const name of 'ab') this.addInput(name, 'COLLECTION_LORA');"
        " this.addOutput('', 'COLLECTION_LORA'); } }"
        " LiteGraph.registerNodeType('test/either', Either); const either = made('test/either');"
        " loader.connect(out, either, 0); either.connect(0, chooser, 0); window.add = () =>"
        " other.connect(out, either, 1); }"
    )
    picker.wait_for_timeout(600)
    assert len(shown(picker)) == 50  # one comes through it
    picker.evaluate("() => { window.add(); }")
    picker.evaluate(FOLLOW)
    told = "Which collection comes through Either of two is known only when it runs."
    picker.locator(".cl-message").filter(has_text=told).wait_for()
    assert shown(picker) == []


@pytest.mark.parametrize("by", ["resolveVirtualOutput", "getInputLink"])
def test_effects_come_through_nodes_without_links(picker: Any, by: str) -> None:
    """As those that set and get a value by a name, which are the page's alone."""
    picker.evaluate(
        f"(by) => {{ {BETWEEN} class Get extends LiteGraph.LGraphNode {{"
        " constructor() { super('Get'); this.isVirtualNode = true; this.addOutput('', 'COLLECTION_LORA'); } }"
        " const ways = { resolveVirtualOutput: () => ({ node: loader, slot: out }),"
        " getInputLink: () => graph.getLink(loader.outputs[out].links[0]) };"
        " Get.prototype[by] = ways[by]; LiteGraph.registerNodeType(`test/${by}`, Get);"
        " loader.connect(out, made('CollectionLoraInfo'), 0); made(`test/${by}`).connect(0, chooser, 0); }",
        by,
    )
    picker.wait_for_timeout(600)
    assert len(shown(picker)) == 50


def test_a_primitive_offers_the_files_effects(picker: Any, two: str) -> None:
    load(picker, two)
    picker.evaluate(
        f"() => {{ {BETWEEN} window.list = made('PrimitiveNode');"
        " window.list.connect(0, chooser, chooser.findInputSlot('effect')); }"
    )
    picker.wait_for_timeout(600)
    offered = picker.evaluate("() => window.list.widgets[0].options.values")
    assert offered == [effect.name for effect in read_catalogue(SHIPPED).effects[:2]]


def test_a_file_that_was_saved_is_offered_and_other_nodes_stay(picker: Any, server: Any) -> None:
    picker.evaluate(
        f"() => {{ {BETWEEN} window.list = made('PrimitiveNode'); const other = made('CollectionLoraLoad');"
        " window.list.connect(0, other, other.findInputSlot('file'));"
        " window.names = made('PrimitiveNode'); const sampler = made('KSampler');"
        " window.names.connect(0, sampler, sampler.findInputSlot('sampler_name'));"
        " window.names.widgets[0].value = 'lcm'; }"
    )
    new = server.base_directory / "models" / "loras" / "just_saved.safetensors"
    load(picker, new.name)
    assert f"{new.name}: no such file" in picker.locator(".cl-message").inner_text()
    shutil.copy(SHIPPED, new)
    kept = picker.evaluate("() => window.list.widgets[0].value")
    picker.evaluate(f"() => {APP}.api.dispatchCustomEvent('collectionlora.saved', {{}})")
    picker.wait_for_function(f"(name) => {LOADER}.widgets[0].options.values.includes(name)", arg=new.name)
    assert new.name in picker.evaluate("() => window.list.widgets[0].options.values")
    made = f"() => {{ {BETWEEN} return made('CollectionLoraLoad').widgets[0].options.values; }}"
    assert new.name in picker.evaluate(made)
    assert picker.evaluate("() => window.list.widgets[0].value") == kept
    assert picker.evaluate("() => window.names.widgets[0].value") == "lcm"
    picker.locator(".cl-cell").first.wait_for()
    assert len(shown(picker)) == 50
    new.unlink()
