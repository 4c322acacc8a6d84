"""What the distiller eats: samples that are encoded already, and the draw of a batch of them (PDSR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .host import Texts
from .randomness import generator


@dataclass(frozen=True, eq=False)
class TeacherPath:
    """Where a teacher passed on its way from noise to an image."""

    sigmas: Tensor
    """(K,) falling from 1."""
    states: Tensor
    """(K,C,h,w) x at these, float16."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One encoded lesson. Latents are (C,h,w), embeddings (T,D); all float tensors on one device: the CPU,
    because the embeddings of a thousand samples are gigabytes where the encoder sees the picture.

    Raises:
        ValueError: a target of another shape than the source, or in the general stream, which has none.
    """

    effect: str | None
    """Name of the effect; None is the general stream."""
    source: Tensor
    student: Tensor
    """Embedding of the student prompt (general stream: of the instruction)."""
    teacher: Tensor
    """Embedding of the teacher's own prompt (general stream: of the instruction)."""
    empty: Tensor
    """Embedding of the empty prompt, for guidance: an encoder that looks at the source has one for each."""
    target: Tensor | None = None
    """An image the teacher produced for this source; None where there is none."""
    path: TeacherPath | None = None
    """The way to it, where it is kept."""

    def __post_init__(self) -> None:
        if self.target is None:
            return
        if self.effect is None:
            raise ValueError("a sample of the general stream has no teacher image")
        if self.target.shape != self.source.shape:
            raise ValueError(
                f"effect {self.effect!r}: source {tuple(self.source.shape)} and teacher image "
                f"{tuple(self.target.shape)} differ in shape"
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples stacked. `numbers` are their numbers within the cycle: they name the random draws."""

    numbers: tuple[int, ...]
    effects: tuple[str | None, ...]
    source: Tensor
    """(B,C,h,w)"""
    student: Texts
    teacher: Texts
    empty: Texts
    targets: tuple[Tensor | None, ...]
    paths: tuple[TeacherPath | None, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, samples: Sequence[Sample], numbers: Sequence[int]) -> Batch:
        """Stack samples, whose sources have one shape; prompts may have any lengths."""
        return cls(
            tuple(numbers),
            tuple(sample.effect for sample in samples),
            torch.stack([sample.source for sample in samples]),
            together([sample.student for sample in samples]),
            together([sample.teacher for sample in samples]),
            together([sample.empty for sample in samples]),
            tuple(sample.target for sample in samples),
            tuple(sample.path for sample in samples),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        student, teacher, empty = (
            text.to(device) if isinstance(text, Tensor) else [one.to(device) for one in text]
            for text in (self.student, self.teacher, self.empty)
        )
        targets = tuple(None if target is None else target.to(device) for target in self.targets)
        source = self.source.to(device)
        return Batch(self.numbers, self.effects, source, student, teacher, empty, targets, self.paths)

    def seeded(self) -> list[int]:
        """Positions of the samples that have a teacher image: those of the TS and TA-FM terms."""
        return [i for i, target in enumerate(self.targets) if target is not None]

    def teachers(self) -> tuple[str, ...]:
        """Names of the batch's teachers, each once, sorted."""
        return tuple(sorted({name for name in self.effects if name is not None}))


@dataclass(frozen=True, eq=False)
class Lessons:
    """All samples of a run: for each effect its samples, and the general stream's.

    Raises:
        ValueError: no effect at all, or one without samples.
    """

    effects: Mapping[str, Sequence[Sample]]
    general: Sequence[Sample]

    def __post_init__(self) -> None:
        if not self.effects:
            raise ValueError("no effect to distil: the list of teachers is empty")
        for name, samples in self.effects.items():
            if not samples:
                raise ValueError(f"effect {name!r} has no source image; add some or drop the effect")

    def draw(self, seed: int, cycle: int, numbers: Sequence[int], p_effect: float) -> list[Sample]:
        """The samples with these numbers of a cycle (PDSR, paper section 3.1).

        Each number draws its own stream, effect and image, so a batch mixes streams and effects, and the draw
        does not depend on micro-batches or ranks. Without general samples every draw is an effect's.
        """
        return [self._one(generator(seed, cycle, number, "route"), p_effect) for number in numbers]

    def _one(self, g: torch.Generator, p_effect: float) -> Sample:
        stream, which, image = torch.rand(3, generator=g, dtype=torch.float64).tolist()
        if stream >= p_effect and self.general:
            return self.general[int(image * len(self.general))]
        samples = list(self.effects.values())[int(which * len(self.effects))]
        return samples[int(image * len(samples))]

    def names(self) -> dict[str, Any]:
        """What names the samples: their numbers, in the order in which they are drawn, and their sizes."""
        counts = [[name, len(samples)] for name, samples in self.effects.items()]
        every = [*self.general, *(one for some in self.effects.values() for one in some)]
        sizes = sorted({tuple(one.source.shape) for one in every})
        return {"effects": counts, "general": len(self.general), "sizes": [*map(list, sizes)]}


def micro_batches(sources: Sequence[Tensor], size: int) -> list[list[int]]:
    """Positions of at most `size` samples each, all of them once; a micro-batch has sources of one shape.

    The largest come first, so that processes which take turns get about as many samples.
    """
    alike: dict[torch.Size, list[int]] = {}
    for i, source in enumerate(sources):
        alike.setdefault(source.shape, []).append(i)
    parts = [some[start : start + size] for some in alike.values() for start in range(0, len(some), size)]
    return sorted(parts, key=len, reverse=True)


def together(prompts: Sequence[Tensor]) -> Texts:
    """Embeddings (T,D), as one tensor where they are equally long."""
    return torch.stack(list(prompts)) if len({len(prompt) for prompt in prompts}) == 1 else list(prompts)


def picked(texts: Texts, positions: Sequence[int]) -> Texts:
    """Of the prompts those at `positions`."""
    # an index would be copied to the device, and waited for
    return texts if list(positions) == list(range(len(texts))) else together([texts[i] for i in positions])
