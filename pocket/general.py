"""Is the base still there? General edits by the collection beside the same edits by the base alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..collection.lora_weights import LoraWeights
from ..training.bank import TeacherBank
from ..training.host import Host
from ..training.judging.statistics import Resamples
from ..training.lora import linear_shapes
from ..training.randomness import generator
from ..training.roles import BASE, Roles
from ..training.sampling import sample_collection, sample_teachers
from .draw import FloatImage
from .edits import Edit, sample_edit
from .evaluate import REFERENCE_STEPS
from .images import photographs_of
from .rows import BATCH, Progress, Student, adapter_of, first_pictures, picture_tensor, sigmas_of

ROLE, FEW_STEP = "collection", "few step"


def judge_general(
    host: Host,
    student: Student,
    images: Path,
    count: int,
    each: int = 6,
    seed: int = 0,
    progress: Progress = lambda *_: None,
    few_step: LoraWeights | None = None,
) -> dict[str, Any]:
    """RMS errors to the one true result: the base in 40 Euler steps, and in 8 as a collection is sampled, and
    the collection in 8 and 4; the base with `few_step` alone in as many, which tells what few steps cost.

    `each` random edits on each of the first `count` pictures of `images`, only edits whose words leave
    nothing open. All rows see the same edits and noise. The floor is what the autoencoder costs. "ratio" is a
    row's mean error over the base's in 40, with 95% intervals over what the pictures are parts of. Raises
    ValueError for a wrong `count`, and as `photographs_of`.
    """
    pictures = first_pictures(images, count)
    names = [name for name in pictures for _ in range(each)]
    photographs = photographs_of(images, names)
    jobs = [unique_edit(pictures[name], seed, name, k % each) for k, name in enumerate(names)]
    sources = picture_tensor([pictures[name] for name in names])
    truths = picture_tensor([result for _, result in jobs])
    latents = host.encode_image(sources)
    texts = torch.stack([host.encode_text([edit.instruction])[0] for edit, _ in jobs])
    empty = host.encode_text([""])[0]
    bank = TeacherBank({}, linear_shapes(host.transformer), host.device)
    loras = {ROLE: student.loras} | ({FEW_STEP: [few_step]} if few_step else {})
    adapters = {role: adapter_of(one).to(host.device) for role, one in loras.items()}
    with Roles(host.transformer, adapters) as roles:

        def draws(part: slice) -> list[torch.Generator]:
            return [generator(seed, "general", names[k], k % each) for k in range(len(names))[part]]

        def base(part: slice) -> Tensor:
            rows, nothing = texts[part], empty.expand(len(texts[part]), -1, -1)
            nobody = [None] * len(rows)
            return sample_teachers(
                host, roles, bank, nobody, rows, nothing, latents[part], draws(part), REFERENCE_STEPS, 0.0
            )

        def few(role: str, steps: int) -> Callable[[slice], Tensor]:
            sigmas = sigmas_of(student, steps)
            return lambda part: sample_collection(
                host, roles, role, texts[part], latents[part], draws(part), sigmas
            )

        in_few = {"base@8": few(BASE, 8), "collection@8": few(ROLE, 8), "collection@4": few(ROLE, 4)}
        if few_step:
            in_few |= {f"base + few-step@{n}": few(FEW_STEP, n) for n in (8, 4)}
        makers: dict[str, Callable[[slice], Tensor]] = {
            "truth@ae": lambda part: host.encode_image(truths[part]),
            f"base@{REFERENCE_STEPS}": base,
            **in_few,
        }
        errors = {}
        for row, make in makers.items():
            parts = []
            for start in range(0, len(names), BATCH):
                part = slice(start, start + BATCH)
                made = host.decode(make(part)).float().cpu().clamp(0, 1)
                parts.append((made - truths[part]).square().flatten(1).mean(1).sqrt())
                progress(f"general edits, {row}", min(start + BATCH, len(names)), len(names))
            errors[row] = torch.cat(parts)
    resamples = Resamples({"general": photographs}, seed=seed)
    means = {row: resamples.mean("general", values) for row, values in errors.items()}
    reference = means[f"base@{REFERENCE_STEPS}"]
    return {
        "edits": len(names),
        "error": {row: resamples.interval(values).to_json() for row, values in means.items()},
        "ratio": {row: resamples.interval(means[row] / reference).to_json() for row in in_few},
    }


def unique_edit(picture: FloatImage, seed: int, *name: object) -> tuple[Edit, FloatImage]:
    """A random edit that has one true result on this picture, and that result."""
    number = int(torch.randint(2**62, (), generator=generator(seed, "general edit", *name)))
    rng = np.random.default_rng(number)
    while True:
        edit = sample_edit(rng)
        first, second = (edit.apply(picture, np.random.default_rng(k)) for k in range(2))
        if np.array_equal(first, second) and not np.array_equal(first, picture):
            return edit, first
