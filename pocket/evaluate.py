"""What a pocket collection is worth: all ways of making the pictures, judged side by side.

Cost: 84 evaluations of the network an image and effect without guidance, 148 with, so 50 effects on 32 images
take about 20 or 35 minutes on two CPU cores.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..collection.atomic import atomic_write
from ..collection.file import load_collection
from ..collection.layouts import read_lora, write_lora
from ..training.bank import TeacherBank
from ..training.flow import few_step_sigmas
from ..training.host import Host
from ..training.judge_report import JudgeReport, judge_rows
from ..training.judges import Judge
from ..training.lora import LoraAdapter, LoraWeights, Shapes, linear_shapes
from ..training.plots import SheetRow, contact_sheet, named_grid, plot_confusion
from ..training.randomness import generator
from ..training.roles import BASE, Roles
from ..training.sampling import sample_collection, sample_teachers
from .effects import EFFECTS
from .images import FloatImage, load_folder

JUDGE = Path(__file__).resolve().parent / "weights" / "judge.safetensors"
BATCH = 32
REFERENCE = "teacher@40x2"
REFERENCE_STEPS = 40
COMPARED = (
    ("collection@8", "teacher@8"),
    ("collection@8", REFERENCE),
    ("collection@4", "teacher@4"),
    ("stacked@8", "collection@8"),
    ("fresh@8", "fresh_untrained@8"),
)
"""Pairs of rows whose difference the report states, where both exist."""

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

    @classmethod
    def read(cls, path: Path, shapes: Shapes | None = None) -> Student:
        """Weights and prompts of a collection file. Raises CollectionError naming the file."""
        weights, catalogue = load_collection(path, shapes)
        return cls([weights], {effect.name: effect.prompt for effect in catalogue.effects}, catalogue.sigmas)


def evaluate(
    host: Host,
    collection: Path,
    teachers: Mapping[str, Path],
    images: Path,
    count: int,
    out: Path,
    progress: Progress = lambda *_: None,
    guidance: float = 0.0,
    rows: Mapping[str, Student] | None = None,
    effects: Sequence[str] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    few_step: LoraWeights | None = None,
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
        judge: the pocket's own by default.
        few_step: an adapter of few-step sampling alone, to put on each teacher as users do.

    Raises:
        ValueError: an effect without truth or teacher, or too few images, named. CollectionError,
        LoraFormatError: a file that is not what it should be, before anything is computed.
    """
    shapes = linear_shapes(host.transformer)
    own = Student.read(collection, shapes)
    names = _effects(effects if effects is not None else list(own.prompts), own, teachers)
    judge = judge or Judge.load(JUDGE)
    pictures = first_pictures(images, count)
    prompts = {name: EFFECTS[name].teacher_prompt for name in names}
    students = {
        "stacked@8": Student(
            [read_lora(path, shapes) for path in teachers.values()], prompts, few_step_sigmas(8)
        ),
        "collection@8": replace(own, sigmas=sigmas_of(own, 8)),
        "collection@4": replace(own, sigmas=sigmas_of(own, 4)),
        **(rows or {}),
    }
    adapters = {row: adapter_of(student.loras) for row, student in students.items() if student.loras}
    bank = TeacherBank(teachers, shapes, host.device, ram=len(teachers))
    out.mkdir(parents=True, exist_ok=True)
    with Roles(host.transformer, {row: a.to(host.device) for row, a in adapters.items()}) as roles:
        bench = _Bench(host, roles, bank, names, pictures, guidance, seed, progress)
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
    report = judge_rows(judge, made, sources, truths, unique=unique, seed=seed)
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
    adapters = {row: adapter_of(student.loras).to(host.device) for row, student in students.items()}
    with Roles(host.transformer, adapters) as roles:
        bank = TeacherBank({}, linear_shapes(host.transformer), host.device)
        bench = _Bench(host, roles, bank, effects, pictures, 0.0, seed, lambda *_: None)
        made = {row: bench.student(row, student) for row, student in students.items()}
        truths = bench.truth(0)
    return judge_rows(judge, made, dict.fromkeys(effects, bench.images), truths, unique=(), seed=seed)


class _Bench:
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
    ) -> None:
        self.host, self.roles, self.bank, self.effects = host, roles, bank, effects
        self.pictures, self.guidance, self.seed, self.progress = pictures, guidance, seed, progress
        self.images = picture_tensor(list(pictures.values()))
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

        return self._row(row, prompts, sample)

    def student(self, row: str, student: Student) -> Made:
        """Each effect by one adapter, the row's own, by consistency sampling without guidance."""
        role = row if student.loras else BASE
        return self._row(
            row,
            student.prompts,
            lambda _, *inputs: sample_collection(self.host, self.roles, role, *inputs, student.sigmas),
        )

    def _row(self, row: str, prompts: Mapping[str, str], sample: Callable[..., Tensor]) -> Made:
        """`sample(effects, texts, sources, generators)` in batches; an effect's pictures stand together."""
        effects = [effect for effect in self.effects if effect in prompts]
        jobs = [(effect, i) for effect in effects for i in range(len(self.pictures))]
        names, parts = list(self.pictures), []
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            # encoded anew for each batch: a real encoder may look at the image, this one is cheap
            texts = [self.host.encode_text([prompts[e]], self.images[i])[0] for e, i in part]
            draws = [generator(self.seed, "noise", e, names[i]) for e, i in part]
            sources = self._latents[[i for _, i in part]]
            parts.append(self._decode(sample([e for e, _ in part], torch.stack(texts), sources, draws)))
            self.progress(row, start + len(part), len(jobs))
        return dict(zip(effects, torch.cat(parts).split(len(names))))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.host.decode(latents).float().cpu()


def _better(bench: _Bench, judge: Judge, row: str, steps: int) -> tuple[Made, str]:
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


def add_to_each(
    teachers: Mapping[str, Path], lora: LoraWeights, folder: Path, shapes: Shapes
) -> dict[str, Path]:
    """Files of each teacher with `lora` added to it at full strength, by name."""
    files = {}
    for name, path in teachers.items():
        files[name] = folder / f"{name}.safetensors"
        write_lora(adapter_of([read_lora(path, shapes), lora]).weights(), files[name], "comfy")
    return files


def first_pictures(images: Path, count: int) -> dict[str, FloatImage]:
    """The first `count` pictures of a folder by name. Raises ValueError for fewer than 2 or too many."""
    pictures = load_folder(images)
    if not 2 <= count <= len(pictures):
        raise ValueError(f"count = {count} must be from 2 to {len(pictures)}, the pictures in {images}")
    return dict(list(pictures.items())[:count])


def sigmas_of(student: Student, steps: int) -> tuple[float, ...]:
    """The schedule of `steps` evaluations, the student's own if it has as many."""
    return student.sigmas if len(student.sigmas) == steps + 1 else few_step_sigmas(steps)


def adapter_of(loras: Sequence[LoraWeights]) -> LoraAdapter:
    """One adapter that adds up LoRAs at full strength: their A one below the other, their B side by side."""
    paths = dict.fromkeys(path for lora in loras for path in lora.down)
    holders = {path: [lora for lora in loras if path in lora.down] for path in paths}
    down = {p: torch.cat([lora.down[p].float() for lora in having]) for p, having in holders.items()}
    up = {p: torch.cat([lora.up[p].float() * lora.scale(p) for lora in h], 1) for p, h in holders.items()}
    rank = max(len(a) for a in down.values())
    adapter = LoraAdapter({p: (up[p].shape[0], down[p].shape[1]) for p in paths}, rank, rank)
    adapter.load(
        LoraWeights(
            {p: F.pad(a, (0, 0, 0, rank - len(a))) for p, a in down.items()},
            {p: F.pad(b, (0, rank - b.shape[1])) for p, b in up.items()},
            dict.fromkeys(paths, float(rank)),
        )
    )
    return adapter.requires_grad_(False)


def picture_tensor(pictures: Sequence[FloatImage]) -> Tensor:
    """Pictures (H,W,3) as (n,3,H,W)."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous()


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
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
