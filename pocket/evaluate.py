"""What a pocket collection is worth: all ways of making the pictures, judged side by side.

Cost: 84 evaluations of the network an image and effect without guidance, 148 with, so 50 effects on 32 images
are 134,400 or 236,800 of them; two CPU cores do about a hundred a second with nothing else to do.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..collection.atomic import atomic_write, write_text
from ..collection.layouts import read_lora
from ..collection.lora_weights import LoraWeights
from ..training.bank import TeacherBank
from ..training.flow import few_step_sigmas
from ..training.host import Host
from ..training.judging.confusion import plot_confusion
from ..training.judging.judge import Judge
from ..training.judging.report import JudgeReport, judge_rows
from ..training.lora import linear_shapes
from ..training.roles import Roles
from ..training.sheets import SheetRow, contact_sheet, named_grid
from .effects import EFFECTS
from .images import photographs_of
from .kept_latents import KeptLatents
from .rows import Made, Progress, Rows, Student, adapter_of, add_to_each, first_pictures, sigmas_of

REFERENCE = "teacher@40x2"
REFERENCE_STEPS = 40
COMPARED = (
    ("collection@8", "teacher@8"),
    ("collection@8", REFERENCE),
    ("collection@4", "teacher@4"),
    ("collection@4", REFERENCE),
    ("stacked@8", "collection@8"),
    ("fresh@8", "fresh_untrained@8"),
)
"""Pairs of rows whose difference the report states, where both exist."""


def evaluate(
    host: Host,
    collection: Path,
    teachers: Mapping[str, Path],
    images: Path,
    count: int,
    out: Path,
    judge: Judge,
    progress: Progress = lambda *_: None,
    guidance: float = 0.0,
    rows: Mapping[str, Student] | None = None,
    effects: Sequence[str] | None = None,
    seed: int = 0,
    few_step: LoraWeights | None = None,
    kept: Path | None = None,
) -> JudgeReport:
    """Judge a collection against its teachers; write report.json, confusion.png, sheet.png and grid.png
    into `out`.

    Every row sees the same images with the same noise: the truth after the autoencoder's round trip
    (`truth@ae`, another draw than the one it is compared with), the untouched `source`, the teachers in 40
    guided Euler steps (`teacher@40x2`) and in 8 and 4 by Euler or consistency sampling, whichever has fewer
    bad cases, all teachers summed (`stacked@8`), the collection in 8 and 4 steps, and `rows`.

    Args:
        teachers: all teachers by name. Every one of them is in the stack, also those not measured.
        images: folder of test pictures; the first `count` by name are used, at least 2.
        guidance: of the teachers, cond + guidance (cond - uncond); 0 saves the second evaluation.
        rows: further few-step adapters, sampled with their own sigmas.
        effects: those to measure; by default all of the collection.
        few_step: an adapter of few-step sampling alone, to put on each teacher as users do.
        kept: folder that keeps what is sampled, 16 KiB a picture, and from which it is taken the next time.

    Raises:
        ValueError: an effect without truth or teacher, or too few images, named. CollectionError,
        LoraFormatError: a file that is not what it should be, before anything is computed.
    """
    shapes = linear_shapes(host.transformer)
    own = Student.read(collection, shapes)
    names = _effects(effects if effects is not None else list(own.prompts), own, teachers)
    pictures = first_pictures(images, count)
    photographs = photographs_of(images, pictures)
    prompts = {name: EFFECTS[name].teacher_prompt for name in names}
    students = {
        "stacked@8": Student(
            [read_lora(path, shapes) for path in teachers.values()], prompts, few_step_sigmas(8)
        ),
        "collection@8": replace(own, sigmas=sigmas_of(own, 8)),
        "collection@4": replace(own, sigmas=sigmas_of(own, 4)),
        **(rows or {}),
    }
    adapters = {one.role: adapter_of(one.loras) for one in students.values() if one.loras}
    bank = TeacherBank(teachers, shapes, host.device, ram=len(teachers))
    out.mkdir(parents=True, exist_ok=True)
    with Roles(host.transformer, {role: a.to(host.device) for role, a in adapters.items()}) as roles:
        bench = Rows(host, roles, bank, names, pictures, guidance, seed, progress, KeptLatents(kept))
        truths, again = bench.truth(0), bench.truth(1)
        sources = dict.fromkeys(names, bench.images)
        made = {"truth@ae": again, "source": sources, REFERENCE: bench.teachers(REFERENCE, REFERENCE_STEPS)}
        notes = {
            REFERENCE: f"40 Euler steps, guidance {guidance:g}: {80 if guidance else 40} evaluations",
            "stacked@8": f"{len(teachers)} teachers summed at full strength, each effect's teacher prompt",
        }
        for steps in (8, 4):
            row = f"teacher@{steps}"
            made[row], notes[row] = _better(bench, judge, row, steps)
        if few_step is not None:
            with TemporaryDirectory() as folder:
                both = add_to_each(teachers, few_step, Path(folder), shapes)
                bench.bank = TeacherBank(both, shapes, host.device, ram=len(both))
                made["teacher + few-step@8"] = bench.teachers("teacher + few-step@8", 8, fresh_noise=True)
        for row, student in students.items():
            made[row] = bench.student(row, student)
    unique = [name for name in names if torch.equal(truths[name], again[name])]
    report = judge_rows(judge, made, sources, truths, photographs, unique, seed=seed)
    _write(out / "report.json", report, notes, collection.name, guidance, seed)
    sheet = _sheet(bench.images[:2], truths, made[REFERENCE], made["collection@8"], report, guidance)
    titles = [EFFECTS[name].title for name in report.effects]
    results = [made["collection@8"][name][0] for name in report.effects]
    grid = named_grid(["source", *titles], [bench.images[0], *results])
    for name, picture in (("sheet.png", sheet), ("grid.png", grid)):
        with atomic_write(out / name) as temporary:
            picture.save(temporary, "PNG")
    try:
        title = "What the collection's pictures in 8 steps were recognised as"
        plot_confusion(out / "confusion.png", report.confusion["collection@8"], names, report.classes, title)
    except ImportError as error:  # the numbers took minutes and are on the disk
        warnings.warn(f"no confusion.png: {error}", stacklevel=2)
    return report


def judge_students(
    host: Host,
    students: Mapping[str, Student],
    images: Path,
    count: int,
    effects: Sequence[str],
    judge: Judge,
    seed: int = 0,
) -> JudgeReport:
    """Judge few-step adapters against the truth, on the pictures and noise of `evaluate`, without teachers.

    Raises ValueError for a student that has no prompt for an effect, or too few pictures.
    """
    pictures = first_pictures(images, count)
    photographs = photographs_of(images, pictures)
    adapters = {one.role: adapter_of(one.loras).to(host.device) for one in students.values()}
    with Roles(host.transformer, adapters) as roles:
        bank = TeacherBank({}, linear_shapes(host.transformer), host.device)
        bench = Rows(host, roles, bank, effects, pictures, 0.0, seed, lambda *_: None)
        made = {row: bench.student(row, student) for row, student in students.items()}
        truths = bench.truth(0)
    sources = dict.fromkeys(effects, bench.images)
    return judge_rows(judge, made, sources, truths, photographs, seed=seed)


def _better(bench: Rows, judge: Judge, row: str, steps: int) -> tuple[Made, str]:
    """The teachers' pictures by the sampler that leaves fewer bad cases, and a note on both."""
    made = {
        name: bench.teachers(row, steps, fresh_noise)
        for name, fresh_noise in (("Euler", False), ("consistency", True))
    }
    bad = {
        name: float(
            np.mean([judge.examine(e, x, bench.images).bad.float().mean() for e, x in pictures.items()])
        )
        for name, pictures in made.items()
    }
    best = min(bad, key=bad.__getitem__)
    both = ", ".join(f"{name} {share:.3f}" for name, share in bad.items())
    return made[best], f"{best} sampling, the better by bad cases ({both})"


def _effects(wanted: Sequence[str], own: Student, teachers: Mapping[str, Path]) -> list[str]:
    for name in wanted:
        if name not in EFFECTS:
            raise ValueError(
                f"effect {name!r}: the pocket world cannot draw its truth, so it cannot be judged"
            )
        if name not in own.prompts:
            raise ValueError(f"effect {name!r} is not in the collection; it holds {', '.join(own.prompts)}")
        if name not in teachers:
            raise ValueError(f"effect {name!r} has no teacher; there are {', '.join(teachers)}")
    if not wanted:
        raise ValueError("no effect to judge: the list is empty")
    return [name for name in EFFECTS if name in wanted]  # in the judge's order


def _write(
    path: Path, report: JudgeReport, notes: Mapping[str, str], collection: str, guidance: float, seed: int
) -> None:
    content = {
        "collection": collection,
        **report.to_json(),
        "differences": {
            f"{first} - {second}": {k: v.to_json() for k, v in report.difference(first, second).items()}
            for first, second in COMPARED
            if first in report.rows and second in report.rows
        },
        "notes": dict(notes),
        "guidance": guidance,
        "seed": seed,
    }
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know (an interval of very few images)."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sheet(
    images: Tensor, truths: Made, reference: Made, own: Made, report: JudgeReport, guidance: float
) -> Image.Image:
    """A row an effect; for each of the images source, truth, teacher, collection."""
    times = f"{REFERENCE_STEPS} x 2" if guidance else REFERENCE_STEPS
    ways = ("source", "true effect", f"teacher\n{times} evaluations", "collection\n8 evaluations")
    rows = []
    for effect in report.effects:
        made = [
            picture
            for i, image in enumerate(images)
            for picture in (image, truths[effect][i], reference[effect][i], own[effect][i])
        ]
        rows.append(SheetRow(EFFECTS[effect].title, made))
    title = f"{len(rows)} effects in one LoRA, 8 steps"
    note = (
        "Sources that training never saw. Places, palettes and strokes are drawn at random: "
        "a true effect is one of many."
    )
    return contact_sheet(rows, ways * len(images), title, note)
