"""`make bench`: the paper's schedule of evaluations against ours, in one run, from one start.

Both train a student of the pocket's effects from the same warm-up, on the same samples with the same rates,
text and latents cached in both. `out/bench/bench.json` says what a cycle costs (forward-equivalents, seconds,
peak memory) and what the students are worth after equally many updates and after equally long. Every seed is
kept in OUT/seedN once it is judged, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..collection.atomic import write_text
from ..collection.layouts import read_lora
from ..pocket import PICTURES
from ..pocket.evaluate import judge_students
from ..pocket.rows import Student
from ..pocket.shipped import judge_of
from ..training.config import Distillation, distillation
from ..training.distiller import Distiller
from ..training.hosts.pocket import PocketHost
from ..training.lora import linear_shapes
from .paper import PaperDistiller
from .trial import WEIGHTS, Outcome, Trial, kept, run_trials, warmed

EFFECTS = (
    "thermal",
    "duotone",
    "sketch",
    "blueprint",
    "neon",
    "stained_glass",
    "halftone",
    "oil_strokes",
    "confetti",
    "snowfall",
    "bokeh",
    "reflection",
)
SCHEDULES = ("paper", "ours")
MEASURES = ("bad_case", "distance")
PAPER_GUIDANCE = 4.0
COUNTED = 8
"""Cycles over which evaluations are counted with the paper's guidance, which pocket teachers do without."""


def settings(cycles: int, seed: int, **values: Any) -> Distillation:
    """The pocket's, with the paper's five updates of the fake score and its even streams."""
    made = {"cycles": cycles, "warm_cycles": 0, "fake_ratio": 5, "p_effect": 0.5, "seed": seed, **values}
    return distillation(made, "pocket")


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """What each schedule cost and what its students are worth, for one seed."""
    out = args.out / f"seed{seed}"
    base = Trial("base", EFFECTS, args.pictures, settings(args.cycles, seed), out)
    warm = warmed(base, args.warm)
    paper = replace(
        base,
        name="paper",
        distiller=PaperDistiller,
        distill=settings(args.cycles, seed, share_rollouts=False, objective={"anchor": "image"}),
        start=warm,
    )
    ours = replace(paper, name="ours", distiller=Distiller, distill=settings(args.cycles, seed))
    (by_paper,) = run_trials([paper])
    (by_us,) = run_trials([replace(ours, seconds=by_paper.seconds)])
    counts = run_trials([_counted(trial, seed) for trial in (paper, ours)])
    files = {
        "warm": warm,
        "paper": paper.after_cycles,
        "ours": ours.after_cycles,
        "ours, same time": ours.after_budget,
    }
    worth = _judged(files, by_us.prompts, args.images, seed)
    return {
        "warm": {"quality": worth["warm"]},
        "paper": _costs(by_paper, counts[0]) | {"updates": worth["paper"], "time": worth["paper"]},
        "ours": _costs(by_us, counts[1]) | {"updates": worth["ours"], "time": worth["ours, same time"]},
    }


def _counted(trial: Trial, seed: int) -> Trial:
    objective = {"guidance": PAPER_GUIDANCE, "anchor": trial.distill.objective.anchor}
    share = trial.distill.share_rollouts
    distill = settings(COUNTED, seed, objective=objective, share_rollouts=share)
    return replace(trial, name=f"{trial.name}_counted", distill=distill, seconds=0.0)


def _costs(timed: Outcome, counted: Outcome) -> dict[str, Any]:
    return {
        "forward_equivalents_per_cycle": counted.forward_equivalents,
        "forward_equivalents_per_cycle_without_guidance": timed.forward_equivalents,
        "seconds_per_cycle": timed.seconds_per_cycle,
        "peak_bytes": timed.peak_bytes,
        "encoding_seconds": timed.encoding_seconds,
        "cycles_in_equal_time": timed.cycles,
    }


def _judged(
    files: Mapping[str, Path], prompts: Mapping[str, str], images: int, seed: int
) -> dict[str, dict[str, Any]]:
    host = PocketHost(WEIGHTS)
    shapes = linear_shapes(host.transformer)
    sigmas = settings(1, seed).objective.sigmas
    students = {name: Student([read_lora(path, shapes)], prompts, sigmas) for name, path in files.items()}
    report = judge_students(host, students, PICTURES / "test", images, EFFECTS, judge_of(WEIGHTS), seed)
    return {
        name: {measure: report.rows[name][measure].to_json() for measure in MEASURES} for name in students
    }


def summary(runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Costs as means over seeds; qualities one entry a seed."""
    content: dict[str, Any] = {}
    for key in runs[0]["paper"]:
        if key not in ("updates", "time"):
            content[key] = {name: sum(run[name][key] for run in runs) / len(runs) for name in SCHEDULES}
    for key, name in (("updates", "quality_at_equal_updates"), ("time", "quality_at_equal_seconds")):
        content[name] = {schedule: [run[schedule][key] for run in runs] for schedule in SCHEDULES}
    content["quality_of_the_start"] = [run["warm"]["quality"] for run in runs]
    return content


def table(content: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [f"{'':52}{'paper':>22}{'ours':>22}{'ratio':>8}"]
    for key, value in content.items():
        if isinstance(value, dict) and set(value) == set(SCHEDULES):
            paper, ours = value["paper"], value["ours"]
            if isinstance(paper, list):
                for seed, *pair in zip(content["seeds"], paper, ours):
                    for measure in MEASURES:
                        cells = [
                            f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
                            for e in (one[measure] for one in pair)
                        ]
                        lines.append(f"{f'{key}, seed {seed}: {measure}':52}{cells[0]:>22}{cells[1]:>22}")
            else:
                lines.append(f"{key:52}{paper:22.6g}{ours:22.6g}{paper / ours:8.2f}")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--cycles", type=int, default=100, help="student updates of both schedules")
    parser.add_argument("--warm", type=int, default=400, help="cycles of the warm-up that both start from")
    parser.add_argument("--pictures", type=int, default=24, help="training pictures an effect")
    parser.add_argument("--images", type=int, default=32, help="test pictures an effect")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    args = parser.parse_args()
    used = {k: v for k, v in vars(args).items() if k not in ("out", "seeds")}
    runs = [
        kept(args.out / f"seed{seed}" / "bench.json", used, partial(run_seed, args, seed))
        for seed in args.seeds
    ]
    content = summary(runs) | {"settings": used, "seeds": args.seeds}
    write_text(args.out / "bench.json", json.dumps(content, indent=1) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
