"""A host that lends the tiny network, and a folder with all that a run reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from collectionlora.training.host import Host
from collectionlora.training.randomness import generator

HEIGHT, WIDTH = 4, 6


class TinyHost:
    """Images are (3,4,6), latents (2,2,3); a prompt's embedding is noise named by the prompt."""

    name = "tiny"
    identity = "tiny, first training"
    device = torch.device("cpu")
    text_sees_image = False
    reference_method = ""
    dtype = torch.float32

    def __init__(self, net: nn.Module, tokens: int, embedding: int) -> None:
        self.transformer, self.shape = net, (tokens, embedding)
        self.evaluations = 0
        """Samples that the network has seen."""
        self.pictures_read: list[Path] = []

    def velocity(self, x: Tensor, sigma: Tensor, text: Tensor, source: Tensor) -> Tensor:
        self.evaluations += len(x)
        output: Tensor = self.transformer(x, sigma, text, source)
        return output

    def encode_text(self, prompts: Sequence[str], image: Tensor | None) -> list[Tensor]:
        return [torch.randn(self.shape, generator=generator(0, "text", prompt)) for prompt in prompts]

    def encode_image(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 2)[:, :2] * 4 - 2

    def decode(self, latents: Tensor) -> Tensor:
        blue = latents.mean(1, keepdim=True)
        return (
            ((torch.cat([latents, blue], 1) + 2) / 4)
            .clamp(0, 1)
            .repeat_interleave(2, 2)
            .repeat_interleave(2, 3)
        )

    def read_image(self, path: Path) -> Tensor:
        self.pictures_read.append(path)
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB").resize((WIDTH, HEIGHT))
        except OSError as error:
            raise ValueError(f"{path} is not a readable picture: {error}") from error
        return torch.from_numpy(np.asarray(picture, np.float32) / 255).movedim(-1, 0).contiguous()


@dataclass
class Project:
    """A folder with pictures, teachers, lists and a configuration, as a user has it."""

    folder: Path
    lists: dict[str, list[dict[str, Any]]]
    """"effects", "data", "general": their lines."""
    settings: dict[str, Any]
    """Top level of the configuration; tables are dicts."""

    def write(self) -> Path:
        """Write lists and configuration, and return the configuration's path."""
        for name, rows in self.lists.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        path = self.folder / "config.toml"
        path.write_text(toml(self.settings), encoding="utf-8")
        return path

    def picture(self, name: str, size: tuple[int, int] = (12, 8), seed: int = 0) -> str:
        """Write a picture of noise and return its name."""
        pixels = np.random.default_rng([seed, *name.encode()]).integers(
            0, 256, (size[1], size[0], 3), np.uint8
        )
        Image.fromarray(pixels).save(self.folder / name)
        return name


def toml(values: dict[str, Any], table: str = "") -> str:
    """Plain values first, tables after them."""
    plain = "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in values.items() if not isinstance(value, dict)
    )
    tables = {f"{table}{key}": value for key, value in values.items() if isinstance(value, dict)}
    return plain + "".join(f"\n[{key}]\n{toml(value, f'{key}.')}" for key, value in tables.items())


@pytest.fixture
def host(tiny: ModuleType) -> Host:
    """The tiny network, lent."""
    return TinyHost(tiny.Net(), tiny.TOKENS, tiny.EMBEDDING)


@pytest.fixture
def project(tmp_path: Path, tiny: ModuleType) -> Project:
    """Three teachers, two sources each, two general edits, six cycles; lists are not written yet."""
    made = Project(tmp_path, {}, {})
    sources = [made.picture(f"source{i}.png") for i in range(2)]
    tiny.write_teachers(tmp_path)
    made.lists = {
        "effects": [
            {
                "lora_name": name,
                "lora_path": f"{name}.safetensors",
                "prompt": f"Do {name}.",
                "data_type": "test",
            }
            for name in tiny.EFFECTS
        ],
        "data": [
            {"source_image": source, "instruction": "do it", "lora_name": name}
            for name in tiny.EFFECTS
            for source in sources
        ],
        "general": [{"source_image": source, "instruction": "blur it"} for source in sources],
    }
    made.settings = {
        "output": "out",
        "effects": "effects.jsonl",
        "data": "data.jsonl",
        "general": "general.jsonl",
        "candidates": 4,
        "targets": {"steps": 3, "batch": 2},
        "distill": {**tiny.SMALL, "targets": list(tiny.TARGETS), "save_every": 2},
    }
    return made
