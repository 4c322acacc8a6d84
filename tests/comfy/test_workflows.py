"""The workflows as files: opened in the real page, converted by it, run, and their pictures judged."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from graphs import APP, PICTURES, POCKET, Graph, drop, node

from collectionlora.collection.file import load_collection, read_catalogue
from collectionlora.pocket import WEIGHTS
from collectionlora.training.flow import add_noise
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.judging.judge import Judge
from collectionlora.training.lora import TeacherStack
from collectionlora.training.roles import Roles

WORKFLOWS = sorted((POCKET.parent / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_values_by_name_and_by_place_are_the_same(path: Path) -> None:
    for one in json.loads(path.read_text("utf-8"))["nodes"]:
        if "widgets_values_named" in one:  # either may be what the page goes by
            assert list(one["widgets_values_named"].values()) == one["widgets_values"], one["type"]


@pytest.fixture
def converted(page: Any) -> Callable[[str], Graph]:
    """Drop a workflow file on the page and let the page turn it into a graph in API format."""

    def convert(name: str) -> Graph:
        drop(page, POCKET.parent / "workflows" / f"{name}.json")
        graph: Graph = page.evaluate(f"async () => (await {APP}.graphToPrompt()).output")
        return graph

    return convert


def named(graph: Graph, class_type: str) -> str:
    """The id of the only node of a class."""
    (found,) = [key for key, one in graph.items() if one["class_type"] == class_type]
    return found


def on_pocket(graph: Graph) -> Graph:
    """The graph with the loaders of the real model replaced by Pocket Model, at its size."""
    loaders = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
    outputs = {key: loaders[one["class_type"]] for key, one in graph.items() if one["class_type"] in loaders}
    swapped = {key: json.loads(json.dumps(one)) for key, one in graph.items() if key not in outputs}
    swapped["pocket"] = node("CollectionLoraPocketModel")
    for one in swapped.values():
        for name, value in one["inputs"].items():
            if isinstance(value, list) and value[0] in outputs:
                one["inputs"][name] = ["pocket", outputs[value[0]]]
        if "long_side" in one["inputs"]:
            one["inputs"] |= {"long_side": 128, "shape": "square"}
        if "multiple" in one["inputs"]:
            one["inputs"]["multiple"] = 16
    return swapped


def picture(path: Path) -> Tensor:
    """(3,H,W)"""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).movedim(-1, 0)


def test_every_workflow_has_a_picture_and_a_note() -> None:
    assert len(WORKFLOWS) == 7
    for path in WORKFLOWS:
        graph = json.loads(path.read_text(encoding="utf-8"))
        (note,) = [one for one in graph["nodes"] if one["type"] == "MarkdownNote"]
        assert note["widgets_values"][0].startswith("## ")
        with Image.open(path.with_suffix(".jpg")) as shown:
            assert shown.width >= 400


def test_no_workflow_brings_an_id_that_all_made_of_it_would_share() -> None:
    assert not [path.name for path in WORKFLOWS if "id" in json.loads(path.read_text("utf-8"))]


def test_the_template_browser_offers_them(server: Any) -> None:
    offered = server.get("/workflow_templates")[server.pack.name]
    assert sorted(offered) == [path.stem for path in WORKFLOWS]


def test_the_page_offers_the_effects_of_the_connected_file(page: Any, converted: Any) -> None:
    converted("apply_effect_pocket")
    offered = page.evaluate(
        f"() => {APP}.graph.nodes.find((n) => n.comfyClass === 'CollectionLoraEffect')"
        ".widgets.find((w) => w.name === 'effect').options.values"
    )
    assert offered == [one.name for one in read_catalogue(WEIGHTS / "collection.safetensors").effects]


def test_the_applied_effect_is_recognised_and_equals_the_headless_host(server: Any, converted: Any) -> None:
    graph = converted("apply_effect_pocket")
    sampler = named(graph, "CollectionLoraSampler")
    graph["latent"] = node("SaveLatent", samples=[sampler, 0], filename_prefix="workflow")
    saver, chooser = named(graph, "SaveImage"), named(graph, "CollectionLoraEffect")
    judge = Judge.load(WEIGHTS / "judge.safetensors")
    host = PocketHost()
    weights, catalogue = load_collection(WEIGHTS / "collection.safetensors")
    effects = ("neon", "flames", "watercolour", "chalkboard")
    recognised = 0
    for index, effect in enumerate(effects):
        graph[chooser]["inputs"]["effect"] = effect
        # as PNG: core decodes WebP with another library than ours, and its pixels differ a little
        with Image.open(PICTURES[index]) as source_file:
            source_file.save(server.base_directory / "input" / f"{index}.png")
        graph[named(graph, "LoadImage")]["inputs"]["image"] = f"{index}.png"
        outputs = server.run(graph)
        made = load_file(server.output_file(outputs["latent"]["latents"][0]))["latent_tensor"][:, :, 0]
        source = host.read_image(PICTURES[index])[None]
        expected = headless(host, weights, catalogue, effect, source, graph[sampler]["inputs"]["seed"])
        # The mean, 1e-6 or less, sees what differs; a single number of 7 may be 2e-4 apart, because eight
        # evaluations multiply what is rounded.
        gap = (made - expected).abs()
        assert gap.mean() <= 1e-5, effect
        assert gap.max() <= 1e-3, effect
        result = picture(server.output_file(outputs[saver]["images"][0]))[None]
        assert (result - host.decode(expected)).abs().max() < 0.01  # a PNG has 8 bits
        verdict = judge.examine(effect, result, source)
        recognised += int(judge.classifier.classes[verdict.label[0]] == effect and not verdict.bad[0])
    assert recognised >= 3


def headless(host: PocketHost, weights: Any, catalogue: Any, effect: str, image: Tensor, seed: int) -> Tensor:
    """The same sampling without ComfyUI, from the noise that ComfyUI draws for this seed."""
    source, text = host.encode_image(image), torch.stack(host.encode_text([catalogue[effect].prompt]))
    x = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed))
    fresh = torch.Generator().manual_seed(seed + 1)
    stack, everyone = TeacherStack.of({"collection": weights}), torch.zeros(1, dtype=torch.long)
    stack = TeacherStack(
        stack.names, *({k: t.float() for k, t in part.items()} for part in (stack.down, stack.up))
    )
    with torch.no_grad(), Roles(host.transformer, {}) as roles, roles.use_teachers(stack, everyone):
        for now, then in pairwise(catalogue.sigmas):
            sigma = torch.tensor([now])
            x0 = x - now * host.velocity(x, sigma, text, source)
            x = x0
            if then > 0:
                x = add_noise(x0, torch.randn(x0.shape, generator=fresh), torch.tensor([then]))
    return x


def test_the_contact_sheet_shows_every_effect(server: Any, converted: Any) -> None:
    graph = converted("contact_sheet")
    sheet = named(graph, "CollectionLoraContactSheet")
    graph["each"] = node("SaveImage", images=[sheet, 1], filename_prefix="each")
    outputs = server.run(graph)
    effects = [one.name for one in read_catalogue(WEIGHTS / "collection.safetensors").effects]
    results = [picture(server.output_file(one)) for one in outputs["each"]["images"]]
    assert len(results) == len(effects)
    judge = Judge.load(WEIGHTS / "judge.safetensors")
    source = PocketHost().read_image(PICTURES[0])[None]
    labels = [
        judge.classifier.classes[judge.examine(name, result[None], source).label[0]]
        for name, result in zip(effects, results, strict=True)
    ]
    right = sum(label == name for label, name in zip(labels, effects, strict=True))
    assert right >= 0.7 * len(effects), labels
    assert f"{len(effects)} effects" in outputs[named(graph, "CollectionLoraInfo")]["text"][0]


def test_two_effects_are_asked_for_in_one_prompt(server: Any, converted: Any) -> None:
    graph = converted("a_then_b")
    chooser = named(graph, "CollectionLoraEffect")
    graph["shown"] = node("PreviewAny", source=[chooser, 1])
    outputs = server.run(graph)
    catalogue = read_catalogue(WEIGHTS / "collection.safetensors")
    prompt = outputs["shown"]["text"][0]
    assert prompt == f"{catalogue['moonlight'].prompt}, then {catalogue['stained_glass'].prompt}"
    assert outputs[named(graph, "SaveImage")]["images"]


@pytest.mark.parametrize("name", ["distil_pocket", "add_effects"])
def test_the_pocket_distils_from_the_page(server: Any, converted: Any, name: str) -> None:
    graph = converted(name)
    graph[named(graph, "CollectionLoraSettings")]["inputs"] |= {"cycles": 4, "teacher_steps": 2}
    graph[named(graph, "CollectionLoraEffectImages")]["inputs"]["for_each"] = 1
    outputs = server.run(graph, 600)
    text = outputs[named(graph, "CollectionLoraDistil")]["text"][0]
    for key, one in graph.items():
        if one["class_type"] == "PreviewImage":  # losses, and how alike the prompts are
            assert picture(server.output_file(outputs[key]["images"][0])).std() > 0.02
    extended = read_catalogue(WEIGHTS / "collection.safetensors").training["cycles"]
    assert f"cycles: {4 + (extended if name == 'add_effects' else 0)}\n" in text
    saved = sorted((server.base_directory / "models" / "loras" / "collections").glob("*.safetensors"))
    assert any(len(read_catalogue(path).effects) == 50 for path in saved)


def test_the_real_models_workflows_run_with_their_loaders_swapped(server: Any, converted: Any) -> None:
    graph = on_pocket(converted("apply_effect_qwen"))
    graph[named(graph, "CollectionLoraLoad")]["inputs"]["file"] = "pocket (built in)"
    graph[named(graph, "CollectionLoraEffect")]["inputs"]["effect"] = "sketch"
    assert server.run(graph)[named(graph, "SaveImage")]["images"]

    graph = on_pocket(converted("distil_qwen"))
    inputs = server.base_directory / "input"
    for folder in ("effect loras", "sources"):
        (inputs / folder).mkdir(exist_ok=True)
    shutil.copy(WEIGHTS / "teachers" / "neon.safetensors", inputs / "effect loras" / "neon.safetensors")
    shutil.copy(
        WEIGHTS / "teachers" / "oil_strokes.safetensors", inputs / "effect loras" / "oil_paint.safetensors"
    )
    for path in PICTURES[:2]:
        shutil.copy(path, inputs / "sources" / path.name)
    graph[named(graph, "CollectionLoraSettings")]["inputs"] |= {
        "cycles": 2,
        "rank": 4,
        "teacher_steps": 2,
        "more": "batch = 2",
    }
    outputs = server.run(graph, 600)
    assert "cycles: 2" in outputs[named(graph, "CollectionLoraDistil")]["text"][0]
    assert outputs[named(graph, "CollectionLoraEffectImages")]["images"]
