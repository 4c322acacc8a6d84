"""`collectionlora demo`: distils a few teachers for real, then judges the shipped collection."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..collection.atomic import atomic_write, write_text
from ..collection.file import load_collection
from ..console import Console, distil
from ..training.host import Host
from ..training.lora import linear_shapes
from ..training.randomness import generator
from ..training.run_config import read_run
from ..training.sampling import apply_collection
from ..training.sheets import SheetRow, contact_sheet
from . import FOLDER, PICTURES
from .effects import EFFECTS
from .evaluate import evaluate
from .rows import Student
from .shipped import judge_of, teacher_files, teacher_guidance

FRESH = ("thermal", "sketch", "stained_glass", "snowfall")
"""What the fresh student learns: a colour map, lines, random pieces, random places."""
LEARNT_FROM = 24
"""Training pictures an effect."""
GENERAL = 96
CYCLES = 180
WARM = 2 / 3
"""Share of the cycles that only regress: they are six times cheaper than the others."""
JUDGED = 8
"""Test pictures an effect."""
OWN_DRAWS = 3
MEASURES = ("bad_case", "bleeding", "distance", "subject")


def demo(
    host: Host, console: Console, weights: Path, out: Path, image: Path | None = None, cycles: int = CYCLES
) -> dict[str, Any]:
    """Distil, judge, draw; returns what `out`/report.json then holds.

    Args:
        weights: folder with base, judge, collection and teachers.
        image: a picture of the user's, for `out`/yours.png.

    Raises:
        Cancelled, DivergedError, or what `read_run`, `DistillationRun` and `evaluate` raise.
    """
    start = time.monotonic()
    own = None if image is None else host.read_image(image)  # a wrong file must fail now, not after minutes
    judge, collection = judge_of(weights), weights / "collection.safetensors"
    console.say(f"1. Distilling {len(FRESH)} teachers into a fresh student: {_titles(FRESH)}")
    run = read_run(write_project(out / "fresh", weights, cycles))
    for leftover in (run.checkpoint, run.collection):  # of an earlier demo; its teacher images still hold
        leftover.unlink(missing_ok=True)
    learnt = distil(run, host, console)
    fresh = Student.read(run.collection)
    console.say(
        f"   {cycles} cycles in {learnt['training']['seconds']} seconds: {_last(learnt['losses'])}\n"
        f"2. Judging the shipped collection of {len(EFFECTS)} effects on {JUDGED} pictures it never saw"
    )
    report = evaluate(
        host,
        collection,
        teacher_files(weights),
        PICTURES / "test",
        JUDGED,
        out,
        judge,
        console.progress,
        teacher_guidance(),
        rows={"fresh@8": fresh, "fresh_untrained@8": Student([], fresh.prompts, fresh.sigmas)},
    )
    files = ["grid.png", "sheet.png", "report.json", "confusion.png", "losses.png"]
    shutil.copyfile(run.output / "losses.png", out / "losses.png")
    if own is not None:
        draw_own(host, collection, own, out / "yours.png")
        files.append("yours.png")
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    content["fresh"] = {
        "effects": list(FRESH),
        "pictures": LEARNT_FROM,
        **learnt["training"],
        "losses": learnt["losses"],
    }
    content["seconds"] = round(time.monotonic() - start)
    write_text(out / "report.json", json.dumps(content, indent=1) + "\n")
    console.say(f"\n{report.table(MEASURES)}\n")
    console.say(
        f"fresh rows: the {len(FRESH)} effects distilled just now, others all {len(report.effects)}; "
        f"{report.images} pictures an effect; brackets are 95% intervals. The judge names "
        f"{report.accuracy.mean:.1%} of true pictures correctly."
    )
    console.say(f"Done in {content['seconds'] // 60} min {content['seconds'] % 60} s. See")
    for name in files:
        if (out / name).exists():
            console.say(f"  {out / name}")
    return dict(content)


def write_project(folder: Path, weights: Path, cycles: int) -> Path:
    """Write lists and a configuration as a user would, so that `collectionlora distill` can go on with it."""
    data = [row for row in _rows("data.jsonl") if row["lora_name"] in FRESH]
    some = [row for name in FRESH for row in [r for r in data if r["lora_name"] == name][:LEARNT_FROM]]
    files = teacher_files(weights)
    effects = [
        row | {"lora_path": str(files[row["lora_name"]].resolve())}
        for row in _rows("effects.jsonl")
        if row["lora_name"] in FRESH
    ]
    lists = {"effects": effects, "data": some, "general": _rows("general.jsonl")[:GENERAL]}
    for name, rows in lists.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(_absolute(row)) + "\n" for row in rows))
    shipped = read_run(FOLDER / "collection.toml")
    titles = "".join(f"{name} = {json.dumps(EFFECTS[name].title)}\n" for name in FRESH)
    write_text(
        folder / "config.toml",
        f"""# {len(FRESH)} effects of the pocket world, as `collectionlora demo` distils them
output = "."
base = {json.dumps(str(weights.resolve()))}
preset = "pocket"
effects = "effects.jsonl"
data = "data.jsonl"
general = "general.jsonl"
thumbnails = true

[targets]
steps = {shipped.targets.steps}
guidance = {shipped.targets.guidance}
batch = {shipped.targets.batch}

[distill]
cycles = {cycles}
warm_cycles = {round(cycles * WARM)}

[titles]
{titles}""",
    )
    return folder / "config.toml"


def draw_own(host: Host, collection: Path, image: torch.Tensor, path: Path) -> None:
    """A sheet of the user's picture (3,H,W): a row an effect of the collection, several draws of each."""
    weights, catalogue = load_collection(collection, linear_shapes(host.transformer))
    rows = []
    for effect in catalogue.effects:
        draws = [generator(draw, "own", effect.name) for draw in range(OWN_DRAWS)]
        images = image.expand(OWN_DRAWS, -1, -1, -1)
        prompts = [effect.prompt] * OWN_DRAWS
        made = apply_collection(host, weights, prompts, images, draws, catalogue.sigmas)
        rows.append(SheetRow(effect.title, [image, *made.cpu()]))
    evaluations = len(catalogue.sigmas) - 1
    columns = ["your picture", *(f"result {k + 1}\n{evaluations} evaluations" for k in range(OWN_DRAWS))]
    with atomic_write(path) as temporary:
        contact_sheet(rows, columns).save(temporary, "PNG")


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def _absolute(row: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(row)
    if "source_image" in made:
        made["source_image"] = str(FOLDER / made["source_image"])
    return made


def _titles(names: Sequence[str]) -> str:
    return ", ".join(EFFECTS[name].title for name in names)


def _last(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """First and last tenth of each loss, as words."""
    parts = []
    for term, line in losses.items():
        values = line["loss"]
        few = max(1, len(values) // 10)
        parts.append(f"{term} {sum(values[:few]) / few:.3f} to {sum(values[-few:]) / few:.3f}")
    return ", ".join(parts)
