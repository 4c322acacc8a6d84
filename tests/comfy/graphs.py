"""Graphs in API format, as short as tests can write them."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def apply_effect(picture: str, effect: str, seed: int = 1, **changes: dict[str, Any]) -> Graph:
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
            effect=effect,
            then="none",
            composition="{first}, then {second}",
        ),
        "picture": node("LoadImage", image=picture),
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
        "save": node("SaveImage", images=["decode", 0], filename_prefix=f"effect_{effect}"),
    }
    for name, inputs in changes.items():
        graph[name]["inputs"] |= inputs
    return graph
