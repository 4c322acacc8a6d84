"""Measure what tags are worth: bleeding with chosen tags, random tags and no tags, everything else equal.

`python -m collectionlora.bench.tags --out DIR` distils the pocket's effects whose teacher prompts
differ in one word three times and judges the students side by side (DIR/report.json, `rows` "chosen tags@8"
and so on). The similarity matrices before and after stand in DIR/chosen/report.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from ..console import Console, distil
from ..pocket import FOLDER, PICTURES, WEIGHTS
from ..pocket.effects import EFFECTS
from ..pocket.evaluate import evaluate
from ..pocket.rows import Student
from ..pocket.shipped import judge_of, teacher_files, teacher_guidance
from ..training.hosts.pocket import PocketHost
from ..training.run_config import read_run

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
    shipped = read_run(FOLDER / "collection.toml")
    lengths = {"cycles": args.cycles, "warm_cycles": args.cycles * 2 // 3, "imitation_cycles": 0}
    distill = replace(shipped.distill, **lengths)
    lists = shipped.lists.only(names, SOURCES)
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


if __name__ == "__main__":
    main()
