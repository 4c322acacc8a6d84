"""The whole of what is known about a pocket collection: `collectionlora evaluate`, pocket/report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..collection.atomic import write_text
from ..collection.layouts import read_lora
from ..training.flow import few_step_sigmas
from ..training.host import Host
from ..training.judging.report import JudgeReport
from ..training.lora import linear_shapes
from . import FEW_STEP, PICTURES
from .effects import EFFECTS
from .evaluate import evaluate
from .general import judge_general
from .merges import MERGES, merge
from .rows import Progress, Student, first_pictures, sigmas_of
from .shipped import judge_of, teacher_files, teacher_guidance

OWN_ROWS = {"teacher", "teacher + few-step", "stacked", "collection", *MERGES}


def full_report(
    host: Host,
    weights: Path,
    collection: Path,
    count: int,
    out: Path,
    progress: Progress,
    beside: Mapping[str, Path],
) -> tuple[JudgeReport, dict[str, Any]]:
    """Judge a collection beside teachers, truth, sum and PEFT's merges of the teachers, and on general edits.

    weights: folder with judge and teachers. beside: further collections by name, judged on the effects in 8
    steps, and with the few-step LoRA added where `weights` has one. Returns the table and what
    `out`/report.json then holds. Raises what `evaluate` and `judge_general` raise; ModuleNotFoundError
    without PEFT, before anything is computed.
    """
    if taken := sorted(beside.keys() & OWN_ROWS):
        raise ValueError(f"{taken[0]!r}: the table has a row of that name; choose another")
    first_pictures(PICTURES / "test", count)  # a wrong count must fail now, not after the merges
    shapes = linear_shapes(host.transformer)
    files = teacher_files(weights)
    student = Student.read(collection, shapes)
    prompts = {name: EFFECTS[name].teacher_prompt for name in student.prompts if name in EFFECTS}
    teachers = [read_lora(path, shapes) for path in files.values()]
    rank = max(map(len, student.loras[0].down.values()))  # the merges have the collection's
    lora = weights / FEW_STEP.name
    few_step = read_lora(lora, shapes) if lora.exists() else None
    rows: dict[str, Student] = {}
    for name, path in beside.items():
        other = Student.read(path, shapes)
        if not other.prompts.keys() & prompts.keys():
            raise ValueError(f"{path}: none of its effects is judged here, which are {', '.join(prompts)}")
        rows[f"{name}@8"] = replace(other, sigmas=sigmas_of(other, 8))
        if few_step:
            rows[f"{name} + few-step@8"] = replace(rows[f"{name}@8"], loras=[*other.loras, few_step])
    for number, how in enumerate(MERGES):
        progress("merging", number, len(MERGES))
        rows[f"{how}@8"] = Student([merge(teachers, shapes, how, rank)], prompts, few_step_sigmas(8))
    report = evaluate(
        host,
        collection,
        files,
        PICTURES / "test",
        count,
        out,
        judge_of(weights),
        progress,
        teacher_guidance(),
        rows=rows,
        few_step=few_step,
        kept=out / "latents",
    )
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    content["general"] = judge_general(
        host, student, PICTURES / "test", count, progress=progress, few_step=few_step
    )
    write_text(out / "report.json", json.dumps(content, indent=1) + "\n")
    return report, content
