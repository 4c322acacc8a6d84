"""Measure what tags are worth: bleeding with chosen tags, random tags and no tags, everything else equal.

`python -m collectionlora.pocket.train.tags --out DIR` distils the pocket's effects whose teacher prompts
differ in one word three times and judges the students side by side (DIR/report.json, `rows` "chosen tags@8"
and so on). The similarity matrices before and after stand in DIR/chosen/report.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from ...collection.atomic import write_text
from ...console import Console, distil
from ...training.hosts.pocket import PocketHost
from ...training.run_config import read_lists, read_run
from .. import FOLDER, PICTURES, WEIGHTS
from ..effects import EFFECTS
from ..evaluate import evaluate
from ..rows import Student
from ..shipped import judge_of, teacher_files, teacher_guidance

SOURCES = 48
"""Training pictures an effect."""
TAGS = ("chosen", "random", "none")


def overlapping() -> list[str]:
    """Effects whose teacher prompt differs from another's in one word at most."""

    def near(first: str, second: str) -> bool:
        a, b = first.split(), second.split()
        return len(a) == len(b) and sum(x != y for x, y in zip(a, b)) <= 1

    prompts = {name: effect.teacher_prompt for name, effect in EFFECTS.items()}
    return [n for n, p in prompts.items() if any(near(p, q) for m, q in prompts.items() if m != n)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cycles", type=int, default=300)
    parser.add_argument("--images", type=int, default=32, help="test pictures an effect")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    names = overlapping()
    for file in ("effects.jsonl", "data.jsonl"):
        _pick(file, names, args.out)
    shipped = read_run(FOLDER / "collection.toml")
    lengths = {"cycles": args.cycles, "warm_cycles": args.cycles * 2 // 3, "imitation_cycles": 0}
    distill = replace(shipped.distill, **lengths)
    lists = read_lists(args.out / "effects.jsonl", args.out / "data.jsonl")
    lists = replace(lists, general=shipped.lists.general)
    run = replace(shipped, lists=lists, distill=distill, titles={}, few_step=None)
    host = PocketHost(WEIGHTS, "cuda" if torch.cuda.is_available() else "cpu")
    rows = {}
    with Console() as console:
        for tags in TAGS:
            one = replace(run, output=args.out / tags, tags=tags)
            distil(one, host, console, resume=one.checkpoint.exists())
            rows["no tags@8" if tags == "none" else f"{tags} tags@8"] = Student.read(one.collection)
        report = evaluate(
            host,
            WEIGHTS / "collection.safetensors",
            teacher_files(WEIGHTS),
            PICTURES / "test",
            args.images,
            args.out,
            judge_of(WEIGHTS),
            console.progress,
            teacher_guidance(),
            rows,
            names,
        )
        console.say(report.table())


def _pick(name: str, effects: list[str], out: Path) -> None:
    """The lines of a shipped list for `effects`, at most SOURCES each, with absolute paths."""
    count = dict.fromkeys(effects, 0)
    kept = []
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if count.get(row["lora_name"], SOURCES) < SOURCES:
            count[row["lora_name"]] += 1
            for key in ("lora_path", "source_image"):
                if key in row:
                    row[key] = str(FOLDER / row[key])
            kept.append(json.dumps(row) + "\n")
    write_text(out / name, "".join(kept))


if __name__ == "__main__":
    main()
