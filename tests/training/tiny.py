"""A whole distillation small enough to run in milliseconds: three Linears, three teachers, a few samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.training.bank import TeacherBank
from collectionlora.training.config import Distillation, distillation
from collectionlora.training.data import Lessons, Sample
from collectionlora.training.distiller import BELOW, FAKE, STUDENT, Distiller
from collectionlora.training.lora import LoraAdapter, linear_shapes, target_shapes
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles
from collectionlora.training.trainer import Trainer

EFFECTS = ("frost", "neon", "comic")
LATENT = (2, 2, 3)
TOKENS, EMBEDDING, WIDTH = 2, 3, 5
TARGETS = ("enter", "middle")
SMALL = {
    "rank": 2,
    "alpha": 2.0,
    "targets": list(TARGETS),
    "batch": 4,
    "micro_batch": 4,
    "fake_ratio": 2,
    "lr": 0.02,
    "fake_lr": 0.02,
    "cycles": 6,
}


def normal(*key: int | str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator(0, *key))


class Net(nn.Module):
    """A velocity for each pixel, from the pixel, the source's pixel, sigma and the mean of the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * LATENT[0] + 1 + EMBEDDING, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.leave = nn.Linear(WIDTH, LATENT[0])
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator(1, name))
        self.requires_grad_(False)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, source: Tensor) -> Tensor:
        pixels = torch.cat([x, source], 1).flatten(2).transpose(1, 2)
        condition = torch.cat([sigma.to(x.dtype)[:, None], text.mean(1)], 1)
        tokens = torch.cat([pixels, condition[:, None].expand(-1, pixels.shape[1], -1)], 2)
        hidden = torch.tanh(self.enter(tokens))
        hidden = hidden + torch.tanh(self.middle(hidden))
        output: Tensor = self.leave(hidden).transpose(1, 2).reshape(x.shape)
        return output


@dataclass(frozen=True)
class Call:
    """One evaluation of the network."""

    role: str
    prompts: tuple[str, ...]
    """One for each sample: "student:frost", "teacher:frost", "general:1", "empty"."""
    graph: bool
    """With gradient."""

    @property
    def cost(self) -> int:
        """Forward-equivalents: with gradient three, for the recomputation and the backward."""
        return len(self.prompts) * (3 if self.graph else 1)


@dataclass
class World:
    """All parts of a run, and a log of every evaluation of the network."""

    net: Net
    roles: Roles
    bank: TeacherBank
    lessons: Lessons
    distiller: Distiller
    trainer: Trainer
    calls: list[Call] = field(default_factory=list)

    @property
    def cost(self) -> int:
        return sum(call.cost for call in self.calls)


def write_teachers(folder: Path) -> dict[str, Path]:
    """A LoRA file for each effect, of different ranks."""
    files = {}
    for rank, name in enumerate(EFFECTS, 1):
        tensors = {}
        for path, (out, into) in linear_shapes(Net()).items():
            key = f"diffusion_model.{path}"
            tensors[f"{key}.lora_A.weight"] = normal(name, path, "A", shape=(rank, into))
            tensors[f"{key}.lora_B.weight"] = normal(name, path, "B", shape=(out, rank))
        files[name] = folder / f"{name}.safetensors"
        save_file(tensors, files[name])
    return files


def lessons(general: int = 3, targets: bool = True, dtype: torch.dtype = torch.float32) -> Lessons:
    """Two samples an effect; every prompt has an embedding of its own."""

    def text(name: str) -> Tensor:
        return normal("text", name, shape=(TOKENS, EMBEDDING)).to(dtype)

    def image(name: str) -> Tensor:
        return normal("image", name, shape=LATENT).to(dtype)

    effects = {
        name: [
            Sample(
                name,
                image(f"{name} {i}"),
                text(f"student:{name}"),
                text(f"teacher:{name}"),
                text("empty"),
                image(f"{name} {i} target") if targets else None,
            )
            for i in range(2)
        ]
        for name in EFFECTS
    }
    others = [
        Sample(None, image(f"general {i}"), text(f"general:{i}"), text(f"general:{i}"), text("empty"))
        for i in range(general)
    ]
    return Lessons(effects, others)


def config(values: Mapping[str, Any] | None = None, preset: str = "default") -> Distillation:
    """A configuration of tiny size; `values` come last."""
    return distillation({**SMALL, **(values or {})}, preset)


def world(
    folder: Path,
    values: Mapping[str, Any] | Distillation | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    cancelled: Callable[[], bool] = lambda: False,
    lessons_: Lessons | None = None,
    stir: bool = False,
    few_step: LoraWeights | None = None,
) -> World:
    """A trainer and its parts on the teachers of `folder`; `stir` begins with adapters that are not zero;
    `few_step`: the student is sampled on top of it."""
    made = values if isinstance(values, Distillation) else config(values)
    net = Net().to(dtype)
    shapes = target_shapes(net, made.targets)
    adapters = {
        role: LoraAdapter.create(shapes, made.rank, made.alpha, seed, dtype)
        for seed, role in enumerate((STUDENT, FAKE))
    }
    if stir:
        for role, adapter in adapters.items():
            for name, up in adapter.up.items():
                nn.init.normal_(up, std=0.3, generator=generator(2, role, name))
    below = {} if few_step is None else {BELOW: LoraAdapter.of(few_step)}
    roles = Roles(net, adapters | below).attach()
    files = {name: folder / f"{name}.safetensors" for name in EFFECTS}
    bank = TeacherBank(files, linear_shapes(net), dtype=dtype)
    learnt = lessons(dtype=dtype) if lessons_ is None else lessons_
    names = _names(learnt)
    calls: list[Call] = []

    def log(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        prompts = tuple(names[key(text)] for text in args[2])
        calls.append(Call(roles.active, prompts, torch.is_grad_enabled()))

    net.register_forward_pre_hook(log)
    distiller = Distiller(net, roles, bank, made.objective)
    trainer = Trainer(distiller, learnt, made, cancelled)
    return World(net, roles, bank, learnt, distiller, trainer, calls)


def key(text: Tensor) -> tuple[float, ...]:
    return tuple(text.flatten().tolist())


def _names(learnt: Lessons) -> dict[tuple[float, ...], str]:
    names = {}
    for name, samples in learnt.effects.items():
        names[key(samples[0].empty)] = "empty"
        names[key(samples[0].student)] = f"student:{name}"
        names[key(samples[0].teacher)] = f"teacher:{name}"
    for i, sample in enumerate(learnt.general):
        names[key(sample.student)] = f"general:{i}"
    return names


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def live(trainer: Trainer) -> dict[str, Any]:
    """The state that the trainer would go on from."""
    return trainer._state()
