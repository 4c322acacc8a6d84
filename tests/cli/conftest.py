"""A pocket base of random weights, its teachers, a collection, and a user's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from collectionlora import cli
from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint
from collectionlora.collection.file import save_collection
from collectionlora.collection.layouts import read_lora
from collectionlora.collection.lora_weights import Shapes
from collectionlora.pocket.autoencoder import Autoencoder
from collectionlora.pocket.effects import EFFECTS as POCKET_EFFECTS
from collectionlora.pocket.text import TextEncoder
from collectionlora.training.hosts.diffusers import pocket_transformer
from collectionlora.training.hosts.pocket import PocketHost
from collectionlora.training.judging.classifier import BROKEN, FEATURES, SOURCE, EffectClassifier
from collectionlora.training.judging.judge import Judge
from collectionlora.training.judging.statistics import Interval
from collectionlora.training.lora import linear_shapes
from collectionlora.training.randomness import generator

CONFIG = """
output = "out"
base = "base"
preset = "pocket"
effects = "effects.jsonl"
data = "data.jsonl"
general = "general.jsonl"
candidates = 4
[targets]
steps = 1
guidance = 0.0
[distill]
cycles = 2
warm_cycles = 1
batch = 2
micro_batch = 2
rank = 2
alpha = 2.0
fake_ratio = 1
targets = ["to_q", "img_mlp.net.2"]
save_every = 1
[distill.objective]
steps = 2
ts_steps = 1
"""
EFFECTS = ("frost", "neon")
SHIPPED = ("thermal", "duotone", "neon", "stickers", "stained_glass", "snowfall")
"""Effects of the pocket that stand for all of them."""


@dataclass
class Pocket:
    """A folder with a random base, two random teachers, pictures, lists and a configuration."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "config.toml")

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    def change(self, old: str, new: str) -> None:
        """Edit the configuration."""
        path = Path(self.config)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def randomise(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Small random weights: a network of zeros would hide mistakes."""
    return {
        key: (value + 0.05 * torch.randn(value.shape, generator=generator(0, name, key))).contiguous()
        for key, value in model.state_dict().items()
    }


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket base with random weights and two teachers for it."""
    folder = tmp_path_factory.mktemp("base")
    models = {"transformer": pocket_transformer(), "text": TextEncoder(), "autoencoder": Autoencoder()}
    for name, model in models.items():
        save_file(randomise(model, name), folder / f"{name}.safetensors")
    shapes = linear_shapes(PocketHost(folder).transformer)
    for name in EFFECTS:
        write_teacher(folder / f"{name}.safetensors", shapes)
    return folder


def write_teacher(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """A random LoRA, named by its file, on the queries of a base."""
    tensors = {}
    for module, (out, into) in shapes.items():
        if module.endswith("attn.to_q"):
            for part, shape in (("A", (2, into)), ("B", (out, 2))):
                values = torch.randn(shape, generator=generator(0, path.stem, module, part))
                tensors[f"diffusion_model.{module}.lora_{part}.weight"] = 0.1 * values
    save_file(tensors, path)


def write_collection(path: Path, names: Sequence[str], lora: Path, shapes: Shapes) -> None:
    """A collection of these effects in 2 steps, with the weights of `lora`."""
    effects = tuple(Effect(name, name.title(), f"<{name}_1>", f"<{name}_1> do {name}") for name in names)
    catalogue = Catalogue(effects, (1.0, 0.5, 0.0), fingerprint(shapes, "pocket"))
    save_collection(path, read_lora(lora, shapes), catalogue)


@pytest.fixture
def pocket(tmp_path: Path, weights: Path) -> Pocket:
    (tmp_path / "base").symlink_to(weights, target_is_directory=True)
    (tmp_path / "config.toml").write_text(CONFIG)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    lists = {
        "effects": [
            {"lora_name": name, "lora_path": f"base/{name}.safetensors", "prompt": name} for name in EFFECTS
        ],
        "data": [{"source_image": "a.png", "instruction": name, "lora_name": name} for name in EFFECTS],
        "general": [{"source_image": "a.png", "instruction": "blur"}],
    }
    for name, rows in lists.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Pocket(tmp_path)


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A collection of two effects with random weights."""
    path = tmp_path_factory.mktemp("collection") / "two.safetensors"
    shapes = linear_shapes(PocketHost(weights).transformer)
    write_collection(path, EFFECTS, weights / "neon.safetensors", shapes)
    return path


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A folder like pocket/weights: base, teachers, a collection of a few effects, a judge; all
    random."""
    folder = tmp_path_factory.mktemp("shipped")
    for name in ("transformer", "text", "autoencoder"):
        (folder / f"{name}.safetensors").symlink_to(weights / f"{name}.safetensors")
    shapes = linear_shapes(PocketHost(folder).transformer)
    (folder / "teachers").mkdir()
    for name in SHIPPED:
        write_teacher(folder / "teachers" / f"{name}.safetensors", shapes)
    lora = folder / "teachers" / "neon.safetensors"
    write_collection(folder / "collection.safetensors", SHIPPED, lora, shapes)
    classifier = EffectClassifier([*POCKET_EFFECTS, SOURCE, BROKEN])
    classifier.load_state_dict(randomise(classifier, "judge"))
    Judge(
        classifier,
        kinds={name: effect.subject for name, effect in POCKET_EFFECTS.items()},
        confidence=dict.fromkeys(POCKET_EFFECTS, 0.5),
        subject=dict.fromkeys(POCKET_EFFECTS, 0.0),
        scale=dict.fromkeys(POCKET_EFFECTS, 1.0),
        centre=torch.zeros(FEATURES),
        spread=torch.ones(FEATURES),
        accuracy=Interval(0.9, 0.8, 1.0),
        recall=dict.fromkeys(classifier.classes, 0.9),
        false_alarm=Interval(0.01, 0.0, 0.02),
    ).save(folder / "judge.safetensors")
    return folder


class Fails(Protocol):
    """`fails(code, *arguments)` runs a command that must fail with one line on stderr, and returns it."""

    def __call__(self, code: int, *arguments: str) -> str: ...


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    def run(code: int, *arguments: str) -> str:
        capsys.readouterr()
        assert cli.main(arguments) == code
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("collectionlora: ")]
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        return lines[0]

    return run
