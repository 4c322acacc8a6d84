"""A user who applies effects: load, choose, encode, sample."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from graphs import apply_effect, node

from collectionlora.training.pictures import fitted, read_picture

PICTURES = sorted((Path(__file__).parents[2] / "pocket" / "pictures" / "test").glob("*.webp"))


@pytest.fixture(scope="module")
def picture(server: Any) -> str:
    shutil.copy(PICTURES[0], server.base_directory / "input" / "photo.webp")
    return "photo.webp"


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"), np.float32) / 255


def test_an_effect_is_applied(server: Any, picture: str) -> None:
    outputs = server.run(apply_effect(picture, "sketch"))
    made = pixels(server.output_file(outputs["save"]["images"][0]))
    assert made.shape == (128, 128, 3)
    source = fitted(read_picture(PICTURES[0]), 128, 16, True).movedim(0, -1).numpy()
    assert np.abs(made - source).mean() > 0.05


def test_both_ways_to_sample_give_the_same_picture(server: Any, picture: str) -> None:
    graph = apply_effect(picture, "neon")
    graph |= {
        "sigmas": node("CollectionLoraSigmas", model=["load", 0], steps=8),
        "lcm": node("KSamplerSelect", sampler_name="lcm"),
        "negative": node("ConditioningZeroOut", conditioning=["encode", 0]),
        "stock": node(
            "SamplerCustom",
            model=["load", 0],
            add_noise=True,
            noise_seed=1,
            cfg=1.0,
            positive=["encode", 0],
            negative=["negative", 0],
            sampler=["lcm", 0],
            sigmas=["sigmas", 0],
            latent_image=["encode", 1],
        ),
        "save_ours": node("SaveLatent", samples=["sampler", 0], filename_prefix="ours"),
        "save_stock": node("SaveLatent", samples=["stock", 0], filename_prefix="stock"),
    }
    outputs = server.run(graph)
    from safetensors.torch import load_file

    latents = [
        load_file(server.output_file(outputs[name]["latents"][0]))["latent_tensor"]
        for name in ("save_ours", "save_stock")
    ]
    assert latents[0].shape == (1, 16, 1, 16, 16)
    assert torch.equal(*latents)
