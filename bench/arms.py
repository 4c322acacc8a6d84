"""Change one thing, spend the same evaluations from the same start, judge: what each part is worth.

`python -m collectionlora.bench.arms ablation --seeds 0 1 2` takes away the paper's ideas one at a time;
`... screen` tries settings. Every arm is kept in OUT/seedN as soon as it is judged, so that a run that was
stopped goes on, and seeds can run side by side; OUT/arms.json and a table on the screen hold the arms and
seeds that were asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..collection.atomic import write_text
from ..collection.layouts import read_lora
from ..pocket import PICTURES
from ..pocket.evaluate import judge_students
from ..pocket.general import judge_general
from ..pocket.rows import Student, sigmas_of
from ..pocket.shipped import judge_of
from ..training.config import Distillation, distillation
from ..training.distiller import Distiller
from ..training.hosts.pocket import PocketHost
from ..training.lora import linear_shapes
from .compare import EFFECTS
from .trial import WEIGHTS, Trial, kept, run_trials, warmed
from .visited import VisitedDistiller

MEASURES = ("bad_case", "bleeding", "distance")
GENERAL_EDITS = 2
"""On each test picture."""


@dataclass(frozen=True)
class Arm:
    """What differs from the pocket's own settings."""

    values: Mapping[str, Any] = field(default_factory=dict)
    teacher_prompts: bool = False
    distiller: type[Distiller] = Distiller
    few_step: bool = False


def objective(**values: float | str) -> Arm:
    """An arm that differs in the loss."""
    return Arm({"objective": values})


SETS: dict[str, dict[str, Arm]] = {
    "ablation": {
        "all": Arm(),
        "no PDSR": Arm({"p_effect": 1.0}),
        "no AOP": Arm(teacher_prompts=True),
        "no TS": objective(ts_weight=0.0),
        "no TA-FM": objective(fm_weight=0.0),
        "TA-FM from noised images": objective(anchor="image"),
        "TA-FM alone": objective(bs_weight=0.0, ts_weight=0.0, anchor="image"),
        "paths alone": objective(bs_weight=0.0, ts_weight=0.0),
    },
    "screen": {
        "as it is": Arm(),
        "TA-FM from noised images": objective(anchor="image"),
        "TA-FM alone": objective(bs_weight=0.0, ts_weight=0.0, anchor="image"),
        "paths alone": objective(bs_weight=0.0, ts_weight=0.0),
        "floor 0": objective(floor=0.0),
        "floor 0.3": objective(floor=0.3),
        "fake ratio 1": Arm({"fake_ratio": 1}),
        "fake ratio 5": Arm({"fake_ratio": 5}),
        "fresh rollouts": Arm({"share_rollouts": False}),
        "visited x0s": Arm(distiller=VisitedDistiller),
        "no moving average": Arm({"ema": 0.0}),
        "TA-FM x 0.3": objective(fm_weight=0.3),
        "TA-FM x 3": objective(fm_weight=3.0),
        "guidance 0.5": objective(guidance=0.5),
        "half the rate": Arm({"lr": 5e-4}),
        "4 steps": objective(steps=4, ts_steps=2),
        "few-step LoRA": Arm(few_step=True),
        "few-step LoRA, imitation": Arm({"imitation_cycles": 1}, few_step=True),
        "few-step LoRA, half on policy": Arm({"imitation_cycles": 1, "on_policy": 0.5}, few_step=True),
    },
}


def settings(seed: int, **values: Any) -> Distillation:
    """The pocket's; length is by evaluations, and the rate stays."""
    return distillation({"cycles": 1, "warm_cycles": 0, "seed": seed, **values}, "pocket")


def run_arm(args: argparse.Namespace, name: str, arm: Arm, seed: int) -> dict[str, Any]:
    """Train and judge one arm."""
    out = args.out / f"seed{seed}"
    base = Trial("base", EFFECTS, args.pictures, settings(seed), out, teacher_prompts=arm.teacher_prompts)
    trial = replace(
        base,
        name=name,
        distill=settings(seed, **arm.values),
        distiller=arm.distiller,
        few_step=arm.few_step,
        start=warmed(base, args.warm),
        evaluations=args.evaluations,
    )
    (outcome,) = run_trials([trial])
    content = {"cycles": outcome.cycles, "forward_equivalents_per_cycle": outcome.forward_equivalents}
    return content | judged(trial, outcome.prompts, args.images, seed)


def judged(trial: Trial, prompts: Mapping[str, str], images: int, seed: int) -> dict[str, Any]:
    """Measures in 8 and 4 steps, and what is left of general edits."""
    host = PocketHost(WEIGHTS)
    files = [trial.after_budget]
    if trial.few_step:
        files.append(WEIGHTS / "few_step.safetensors")
    loras = [read_lora(file, linear_shapes(host.transformer)) for file in files]
    student = Student(loras, prompts, trial.distill.objective.sigmas)
    steps = {f"@{n}": Student(loras, prompts, sigmas_of(student, n)) for n in (8, 4)}
    report = judge_students(host, steps, PICTURES / "test", images, EFFECTS, judge_of(WEIGHTS), seed)
    rows = {row: {m: report.rows[row][m].to_json() for m in MEASURES} for row in steps}
    general = judge_general(host, student, PICTURES / "test", images, GENERAL_EDITS, seed)
    return {"rows": rows, "general": general["ratio"]}


def table(arms: Mapping[str, list[dict[str, Any]]]) -> str:
    """One line an arm: means over seeds with the smallest and largest."""
    heads = [f"{measure}{row}" for row in ("@8", "@4") for measure in MEASURES]
    lines = [
        "| | cycles | " + " | ".join([*heads, "general edits"]) + " |",
        "|" + "---|" * (len(heads) + 3),
    ]
    for name, seeds in arms.items():
        cells = [f"{sum(one['cycles'] for one in seeds) / len(seeds):.0f}"]
        for row in ("@8", "@4"):
            for measure in MEASURES:
                cells.append(_cell([one["rows"][row][measure]["mean"] for one in seeds]))
        cells.append(_cell([one["general"]["collection@8"]["mean"] for one in seeds]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--only", nargs="*", help="arms by name")
    parser.add_argument("--out", type=Path, help="default: out/bench/SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--evaluations", type=int, default=20_000, help="forward-equivalents of an arm after the warm-up"
    )
    parser.add_argument(
        "--warm", type=int, default=400, help="cycles of the warm-up that all arms start from"
    )
    parser.add_argument("--pictures", type=int, default=24, help="training pictures an effect")
    parser.add_argument("--images", type=int, default=32, help="test pictures an effect")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - SETS[args.set].keys():
        parser.error(f"--only: no arm {min(unknown)!r} in {args.set}; there are {', '.join(SETS[args.set])}")
    args.out = args.out or Path("out/bench") / args.set
    used = {k: getattr(args, k) for k in ("evaluations", "warm", "pictures", "images")}
    arms: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name, arm in SETS[args.set].items():
            if args.only is None or name in args.only:
                path = args.out / f"seed{seed}" / f"{name}.json"
                result = kept(path, used, partial(run_arm, args, name, arm, seed))
                arms.setdefault(name, []).append(result)
                print(f"seed {seed}, {name}\n{table(arms)}", flush=True)
    content = {"settings": used, "seeds": args.seeds, "arms": arms}
    write_text(args.out / "arms.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
