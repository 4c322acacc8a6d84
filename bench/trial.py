"""One way to train, timed and counted: pocket lessons, a common start, students kept on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..collection.atomic import atomic_write
from ..collection.layouts import read_lora, write_lora
from ..pocket import FOLDER, WEIGHTS
from ..training.config import Distillation
from ..training.distiller import Distiller, Velocity
from ..training.host import Texts
from ..training.hosts.pocket import PocketHost
from ..training.lora import linear_shapes
from ..training.memory import peak_memory
from ..training.record import Record
from ..training.run import DistillationRun
from ..training.run_config import Run, read_run
from ..training.trainer import Trainer

ENDLESS = 10**6


@dataclass(frozen=True)
class Trial:
    """What to train, from where, and when to keep the student.

    A student is kept as `out`/NAME_cycles.safetensors after `distill.cycles` cycles. With a budget of
    `seconds` or `evaluations` training goes on until it is spent, encoding left out, and
    NAME_budget.safetensors is kept. A trial that imitates goes on with that.
    """

    name: str
    effects: tuple[str, ...]
    pictures: int
    """Training pictures an effect."""
    distill: Distillation
    out: Path
    distiller: type[Distiller] = Distiller
    teacher_prompts: bool = False
    """The student is asked in the teachers' own words, without tags."""
    few_step: bool = False
    """The student is sampled on top of the pocket's few-step LoRA; without, it has to learn that itself."""
    start: Path | None = None
    """A LoRA file that student and fake score start from."""
    seconds: float = 0.0
    evaluations: int = 0
    """Forward-equivalents: unlike seconds the same on a busy machine and an idle one."""

    @property
    def after_cycles(self) -> Path:
        """The student after `distill.cycles` cycles."""
        return self.out / f"{self.name}_cycles.safetensors"

    @property
    def after_budget(self) -> Path:
        """The student after `seconds` or `evaluations`."""
        return self.out / f"{self.name}_budget.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What a trial cost."""

    timed: int
    """Cycles, `distill.cycles` of them."""
    cycles: int
    """In all, those up to the budget's end too."""
    seconds: float
    """Of the timed cycles."""
    forward_equivalents: float
    """A cycle and sample: 1 without gradient, 3 with (forward, recomputation, backward)."""
    peak_bytes: int
    encoding_seconds: float
    """Before the first cycle: teachers' images, text, latents."""
    prompts: dict[str, str]
    """Student prompt by effect."""

    @property
    def seconds_per_cycle(self) -> float:
        """Of a timed cycle."""
        return self.seconds / self.timed


class Counted:
    """A velocity that counts its forward-equivalents."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.count = velocity, 0

    def __call__(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        self.count += len(x) * (3 if torch.is_grad_enabled() else 1)
        return self.velocity(x, sigma, text, source)


def run_trials(trials: Sequence[Trial]) -> list[Outcome]:
    """One after the other, each in a process of its own: peak memory is a process' own."""
    outcomes = []
    for trial in trials:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            outcomes.append(pool.submit(run_trial, trial).result())
    return outcomes


def kept(path: Path, settings: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` came to, from `path` if it is there. Raises ValueError if that was with other settings."""
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] != settings:
            raise ValueError(
                f"{path} was made with {content['settings']}: remove it, or choose another --out"
            )
        return dict(content["result"])
    result = make()
    with atomic_write(path) as temporary:
        text = json.dumps({"settings": settings, "result": result}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return result


def warmed(trial: Trial, cycles: int) -> Path:
    """The LoRA file of a student that only regressed on the teachers' images, made unless it is there.

    What the trials of a folder that differ from `trial` then start from.
    """
    objective = replace(trial.distill.objective, bs_weight=0.0, ts_weight=0.0, anchor="image")
    name = f"warm_{cycles}_{trial.pictures}" + ("_teacher_prompts" if trial.teacher_prompts else "")
    warm = replace(trial, name=name, distill=replace(trial.distill, cycles=cycles, objective=objective))
    if not warm.after_cycles.exists():
        run_trials([warm])
    return warm.after_cycles


def run_trial(trial: Trial) -> Outcome:
    """Train in this process. Raises what `read_run` and `DistillationRun` raise."""
    torch.set_flush_denormal(True)
    host = PocketHost(WEIGHTS, "cuda" if torch.cuda.is_available() else "cpu")
    first = None if trial.start is None else read_lora(trial.start, linear_shapes(host.transformer))
    begun = time.perf_counter()
    with DistillationRun(_run(trial), host, first=first) as job:
        prepared = job.prepare()
        encoding = time.perf_counter() - begun
        velocity = Counted(host.velocity)
        distiller = trial.distiller(velocity, job.roles, job.bank, trial.distill.objective)
        # may go on past `cycles`: nothing of a cycle may depend on how many there will be
        config = replace(trial.distill, cycles=ENDLESS, lr_schedule="constant")
        if config.imitation_cycles:
            config = replace(config, imitation_cycles=ENDLESS)
        trainer = Trainer(distiller, job.trainer.lessons, config)
        records = trainer.run()
        cycles = trial.distill.cycles
        seconds = spent = _seconds(islice(records, cycles))
        evaluations = velocity.count
        write_lora(trainer.result(), trial.after_cycles, "comfy")
        if trial.seconds or trial.evaluations:
            while spent < trial.seconds or velocity.count < trial.evaluations:
                spent += _seconds(islice(records, 1))
            write_lora(trainer.result(), trial.after_budget, "comfy")
    return Outcome(
        cycles,
        trainer.cycle,
        seconds,
        evaluations / cycles / config.batch,
        peak_memory(host.device),
        encoding,
        {name: words.student for name, words in prepared.prompts.items()},
    )


def _run(trial: Trial) -> Run:
    """The pocket's own run, cut down to the trial's effects and pictures."""
    run = read_run(FOLDER / "collection.toml")
    lists, tags = run.lists.only(trial.effects, trial.pictures), run.tags
    if trial.teacher_prompts:
        asked = {name: replace(one, recaption_prompt=one.prompt) for name, one in lists.effects.items()}
        lists, tags = replace(lists, effects=asked), "none"
    titles = {name: run.titles[name] for name in trial.effects}
    output = trial.out / "lessons"
    few_step = run.few_step if trial.few_step else None
    changed = replace(run, lists=lists, titles=titles, tags=tags, output=output, few_step=few_step)
    return replace(changed, distill=trial.distill)


def _seconds(records: Iterator[Record]) -> float:
    return sum(second for record in records for second in record.seconds.values())
