"""Graphs in API format, as short as tests can write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POCKET = Path(__file__).resolve().parents[2] / "pocket"
PICTURES = sorted((POCKET / "pictures" / "test").glob("*.webp"))
APP = "(window.app ?? window.comfyAPI?.app?.app)"
"""The page's application, in JavaScript."""

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def apply_effect(photo: str, chosen: str, /, seed: int = 1, **changes: dict[str, Any]) -> Graph:
    """The pocket's effect on a picture of the input folder; `changes` replace inputs by node name."""
    graph = {
        "pocket": node("CollectionLoraPocketModel"),
        "load": node(
            "CollectionLoraLoad",
            model=["pocket", 0],
            file="pocket (built in)",
            strength=1.0,
            other_base="refuse",
        ),
        "effect": node(
            "CollectionLoraEffect",
            collection=["load", 1],
            effect=chosen,
            then="none",
            composition="{first}, then {second}",
        ),
        "picture": node("LoadImage", image=photo),
        "encode": node(
            "CollectionLoraEncode",
            clip=["pocket", 1],
            vae=["pocket", 2],
            image=["picture", 0],
            effect=["effect", 0],
            long_side=128,
            multiple=16,
            shape="square",
        ),
        "sampler": node(
            "CollectionLoraSampler",
            model=["load", 0],
            positive=["encode", 0],
            latent=["encode", 1],
            seed=seed,
            steps=8,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["pocket", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=f"effect_{chosen}"),
    }
    for name, inputs in changes.items():
        graph[name]["inputs"] |= inputs
    return graph


MORE = """
batch = 2
micro_batch = 2
save_every = 2
warm_cycles = 1
fake_ratio = 1
"""


def distil(
    name: str, cycles: int, lists: tuple[str, str] = ("two.jsonl", "few.jsonl"), **changes: dict[str, Any]
) -> Graph:
    """A short distillation of two of the pocket's teachers, on lists in the input folder."""
    graph = {
        "pocket": node("CollectionLoraPocketModel"),
        "teachers": node("CollectionLoraTeachers", source=lists[0], prompts=""),
        "images": node(
            "CollectionLoraEffectImages", teachers=["teachers", 0], before=lists[1], after="", for_each=2
        ),
        "general": node("CollectionLoraGeneralImages", pictures="pocket (built in)", instructions=""),
        "settings": node(
            "CollectionLoraSettings",
            preset="pocket",
            cycles=cycles,
            rank=4,
            learning_rate=0.0,
            teacher_steps=2,
            teacher_guidance=0.0,
            seed=0,
            more=MORE,
        ),
        "distil": node(
            "CollectionLoraDistil",
            model=["pocket", 0],
            clip=["pocket", 1],
            vae=["pocket", 2],
            teachers=["teachers", 0],
            images=["images", 0],
            general=["general", 0],
            settings=["settings", 0],
            name=name,
            start="go on where it stopped",
            long_side=128,
            shape="square",
            preview_every=2,
        ),
    }
    for key, inputs in changes.items():
        graph[key]["inputs"] |= inputs
    return graph


def plain_sampling(photo: str) -> Graph:
    """The pocket base without anything of ours on it: core's KSampler and a saved latent."""
    return {
        "pocket": node("CollectionLoraPocketModel"),
        "picture": node("LoadImage", image=photo),
        "encoded": node("VAEEncode", pixels=["picture", 0], vae=["pocket", 2]),
        "text": node("CLIPTextEncode", clip=["pocket", 1], text="a pencil drawing"),
        "positive": node("ReferenceLatent", conditioning=["text", 0], latent=["encoded", 0]),
        "negative": node("ConditioningZeroOut", conditioning=["positive", 0]),
        "sampler": node(
            "KSampler",
            model=["pocket", 0],
            seed=5,
            steps=6,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["encoded", 0],
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="plain"),
    }


def open_page(page: Any, url: str) -> None:
    """Load ComfyUI's page, or load it again, and wait until the pack's nodes are there.

    The page then opens what was open in it before, which would take the place of a graph loaded meanwhile:
    its spinner says when that is over.
    """
    page.goto(url, timeout=120_000)
    page.wait_for_function(
        f"() => {APP}?.graph && window.LiteGraph?.registered_node_types?.CollectionLoraLoad"
        f" && {APP}.extensionManager.workflow.activeWorkflow && !{APP}.extensionManager.spinner",
        timeout=120_000,
    )
    page.wait_for_timeout(500)


_DROP = """
async ([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, { type: "application/json" }));
  APP.graph.extra.dropped = true; // gone with the graph that is there now
  document.querySelector("#graph-canvas").dispatchEvent(
    new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
  );
  for (let i = 0; i < 80 && APP.graph.extra.dropped; i++) await new Promise((done) => setTimeout(done, 100));
  return !APP.graph.extra.dropped;
}
""".replace("APP", APP)


def drop(page: Any, file: Path) -> None:
    """Drop a workflow file on the page's canvas, and wait until it is open."""
    assert page.evaluate(_DROP, [file.name, file.read_text("utf-8")]), f"{file.name} was not opened"
    page.wait_for_timeout(500)  # our own script fills lists in
