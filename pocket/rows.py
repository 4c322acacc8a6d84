"""Rows of pictures to be judged: all effects by the truth, by teachers, a collection or any other adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..collection.file import load_collection
from ..collection.layouts import read_lora, write_lora
from ..collection.lora_weights import LoraWeights, Shapes
from ..training.bank import TeacherBank
from ..training.flow import few_step_sigmas
from ..training.host import Host
from ..training.lora import LoraAdapter, added_up, weights_hash
from ..training.randomness import generator
from ..training.roles import BASE, Roles
from ..training.sampling import sample_collection, sample_teachers
from .effects import EFFECTS
from .images import FloatImage, load_folder
from .kept_latents import KeptLatents

BATCH = 32

Progress = Callable[[str, int, int], None]
"""`progress(row, done, all)`, in pictures of the row."""
Made = dict[str, Tensor]
"""Effect -> pictures (n,3,H,W), one for each image."""


@dataclass(frozen=True)
class Student:
    """An adapter for few steps, and what it is asked for each effect with."""

    loras: Sequence[LoraWeights]
    """Summed at full strength; none is an adapter before its training: the base alone."""
    prompts: Mapping[str, str]
    """Effect -> student prompt. Effects that are not in it are left out of its row."""
    sigmas: tuple[float, ...]

    @property
    def role(self) -> str:
        """Its adapter's name, by its weights: rows of one student in other steps share it."""
        return weights_hash(self.loras) if self.loras else BASE

    @classmethod
    def read(cls, path: Path, shapes: Shapes | None = None) -> Student:
        """Weights and prompts of a collection file. Raises CollectionError naming the file."""
        weights, catalogue = load_collection(path, shapes)
        return cls([weights], {effect.name: effect.prompt for effect in catalogue.effects}, catalogue.sigmas)


class Rows:
    """Makes the pictures of a row; a picture's random numbers depend on seed, effect and image name alone."""

    def __init__(
        self,
        host: Host,
        roles: Roles,
        bank: TeacherBank,
        effects: Sequence[str],
        pictures: Mapping[str, FloatImage],
        guidance: float,
        seed: int,
        progress: Progress,
        kept: KeptLatents | None = None,
    ) -> None:
        self.host, self.roles, self.bank, self.effects = host, roles, bank, effects
        self.pictures, self.guidance, self.seed, self.progress = pictures, guidance, seed, progress
        self.kept = kept or KeptLatents(None)
        self.images = picture_tensor(list(pictures.values()))
        self._hashes = [hashlib.sha256(one.tobytes()).hexdigest() for one in pictures.values()]
        self._latents = host.encode_image(self.images)
        self._empty = host.encode_text([""], self.images[0])[0]

    def truth(self, draw: int) -> Made:
        """True results as the autoencoder shows them; another `draw` draws other ones of the same effects."""

        def one(effect: str, name: str) -> FloatImage:
            key = torch.randint(2**62, (), generator=generator(self.seed, "truth", draw, effect, name))
            return EFFECTS[effect].apply(self.pictures[name], np.random.default_rng(int(key)))

        return {
            effect: self._decode(
                self.host.encode_image(picture_tensor([one(effect, name) for name in self.pictures]))
            )
            for effect in self.effects
        }

    def teachers(self, row: str, steps: int, fresh_noise: bool = False) -> Made:
        """Each effect by its own teacher, guided, with its own prompt."""
        prompts = {effect: EFFECTS[effect].teacher_prompt for effect in self.effects}

        def sample(effects: Sequence[str], *inputs: Any) -> Tensor:
            texts, sources, draws = inputs
            return sample_teachers(
                self.host,
                self.roles,
                self.bank,
                effects,
                texts,
                self._empty.expand(len(texts), -1, -1),
                sources,
                draws,
                steps,
                self.guidance,
                fresh_noise,
            )

        how = ["teachers", steps, self.guidance, fresh_noise]
        made_by = {effect: self.bank.hashes[effect] for effect in self.effects}
        return self._row(row, prompts, sample, how, made_by)

    def student(self, row: str, student: Student) -> Made:
        """Each effect by the student's own adapter, by consistency sampling without guidance."""
        role = student.role
        return self._row(
            row,
            student.prompts,
            lambda _, *inputs: sample_collection(self.host, self.roles, role, *inputs, student.sigmas),
            ["student", role, student.sigmas],
            {},
        )

    def _row(
        self,
        row: str,
        prompts: Mapping[str, str],
        sample: Callable[..., Tensor],
        how: Sequence[Any],
        made_by: Mapping[str, str],
    ) -> Made:
        """`sample(effects, texts, sources, generators)` in batches; an effect's pictures stand together.

        how, made_by: what the latents depend on beside their inputs, for all effects and for each.
        """
        effects = [effect for effect in self.effects if effect in prompts]
        jobs = [(effect, i) for effect in effects for i in range(len(self.pictures))]
        names, parts = list(self.pictures), []
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]

            def make(part: Sequence[tuple[str, int]] = part) -> Tensor:
                # encoded anew for each batch: a real encoder may look at the image, this one is cheap
                texts = [self.host.encode_text([prompts[e]], self.images[i])[0] for e, i in part]
                draws = [generator(self.seed, "noise", e, names[i]) for e, i in part]
                sources = self._latents[[i for _, i in part]]
                return sample([e for e, _ in part], torch.stack(texts), sources, draws)

            asked = [[e, prompts[e], made_by.get(e), names[i], self._hashes[i]] for e, i in part]
            latents = self.kept.get([self.host.identity, self.seed, how, asked], make)
            parts.append(self._decode(latents))
            self.progress(row, start + len(part), len(jobs))
        return dict(zip(effects, torch.cat(parts).split(len(names))))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.host.decode(latents.to(self.host.device)).float().cpu()


def add_to_each(
    teachers: Mapping[str, Path], lora: LoraWeights, folder: Path, shapes: Shapes
) -> dict[str, Path]:
    """Files of each teacher with `lora` added to it at full strength, by name."""
    files = {}
    for name, path in teachers.items():
        files[name] = folder / f"{name}.safetensors"
        write_lora(added_up([read_lora(path, shapes), lora]), files[name], "comfy")
    return files


def first_pictures(images: Path, count: int) -> dict[str, FloatImage]:
    """The first `count` pictures of a folder by name. Raises ValueError for fewer than 2 or too many."""
    pictures = load_folder(images)
    if not 2 <= count <= len(pictures):
        raise ValueError(
            f"{count} pictures an effect: must be from 2 to {len(pictures)}, as many as there are in {images}"
        )
    return dict(list(pictures.items())[:count])


def sigmas_of(student: Student, steps: int) -> tuple[float, ...]:
    """The schedule of `steps` evaluations, the student's own if it has as many."""
    return student.sigmas if len(student.sigmas) == steps + 1 else few_step_sigmas(steps)


def adapter_of(loras: Sequence[LoraWeights]) -> LoraAdapter:
    """One adapter that adds up LoRAs at full strength."""
    return LoraAdapter.of(added_up(loras))


def picture_tensor(pictures: Sequence[FloatImage]) -> Tensor:
    """Pictures (H,W,3) as (n,3,H,W)."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous()
