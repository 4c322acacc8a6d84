"""The bench's arms: each changes what it says, and visited x0s cost nothing."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

from collectionlora.bench import arms
from collectionlora.bench import trial as trial_module
from collectionlora.bench.trial import Outcome, Trial, kept, run_trial
from collectionlora.bench.visited import VisitedDistiller
from collectionlora.training.config import distillation
from collectionlora.training.distiller import Distiller
from collectionlora.training.trainer import Trainer


@pytest.fixture
def world(tiny, teachers):
    values = {**tiny.SMALL, "fake_ratio": 3, "cycles": 3, "micro_batch": 1}
    return tiny.world(teachers, distillation(values, "default"), stir=True)


def test_later_updates_of_the_fake_score_see_other_steps_for_nothing(world, monkeypatch):
    seen = {}

    def spy(self, batch, x0, draws):
        seen.setdefault(draws.update, []).append(x0)
        return fake_term(self, batch, x0, draws)

    fake_term = VisitedDistiller.__base__.fake_term
    monkeypatch.setattr(VisitedDistiller.__base__, "fake_term", spy)
    distiller = VisitedDistiller(world.distiller.velocity, world.roles, world.bank, world.distiller.objective)
    for _ in world.trainer.run():
        pass
    ours, cost = {name: list(x0s) for name, x0s in seen.items()}, world.cost
    seen.clear()
    world.calls.clear()
    start = world.trainer.config
    again = Trainer(distiller, world.lessons, start)
    records = again.run()
    next(records)
    assert len(ours["fake 0"]) == start.cycles * start.batch
    assert all(not x0.requires_grad for x0s in seen.values() for x0 in x0s)
    first, *others = (seen[f"fake {k}"] for k in range(3))
    assert any(not torch.equal(x0, own) for other in others for x0, own in zip(other, first))
    kept = dict(distiller.visited)
    assert len(kept) == start.batch
    for own, x0s in zip(first, kept.values()):
        assert torch.equal(own[0], x0s[-1])
    for other in others:
        for x0, x0s in zip(other, kept.values()):
            assert any(torch.equal(x0[0], one) for one in x0s)
    for _ in records:
        pass
    assert world.cost == cost


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, some in arms.SETS.items() for name in some]
)
def test_every_arm_is_a_setting_that_differs_from_the_pockets_own(group, name):
    arm = arms.SETS[group][name]
    config = arms.settings(3, **arm.values)
    assert config.seed == 3
    as_it_is = (arm.teacher_prompts, arm.few_step, arm.distiller) == (False, False, Distiller)
    assert (config == arms.settings(3) and as_it_is) == (name in ("all", "as it is"))
    assert config.objective.guidance == arm.values.get("objective", {}).get("guidance", 0)


def test_an_arm_that_imitates_does_nothing_else_and_stands_on_the_few_step_lora(tmp_path, monkeypatch):
    arm = arms.SETS["screen"]["few-step LoRA, half on policy"]
    config = replace(arms.settings(0, **arm.values), batch=2, micro_batch=2)
    terms, samplers = [], set()

    class Watched(Trainer):
        def run(self):
            samplers.add(self.distiller.sampler)
            for record in super().run():
                terms.append(set(record.losses))
                yield record

    monkeypatch.setattr(trial_module, "Trainer", Watched)
    trial = Trial("arm", ("sepia", "neon"), 1, config, tmp_path, few_step=arm.few_step, evaluations=150)
    outcome = run_trial(trial)
    assert outcome.cycles == len(terms) > 6
    assert {name for names in terms for name in names} == {"imitation", "on_policy"}
    assert samplers == {"student + below"}
    assert trial.after_budget.exists()


def test_an_arm_begins_with_a_student_that_knows_its_words(tmp_path, monkeypatch):
    trials = []

    def train(some):
        trials.extend(some)
        for trial in some:
            trial.after_cycles.parent.mkdir(exist_ok=True)
            trial.after_cycles.touch()
        return [Outcome(1, 2, 1.0, 20.0, 0, 0.0, {}) for _ in some]

    monkeypatch.setattr(trial_module, "run_trials", train)
    monkeypatch.setattr(arms, "run_trials", train)
    monkeypatch.setattr(arms, "judged", lambda *_: {})
    args = argparse.Namespace(out=tmp_path, pictures=2, warm=3, evaluations=4, images=1)
    for name in ("all", "no AOP", "no TS"):
        arms.run_arm(args, name, arms.SETS["ablation"][name], seed=0)
    warm, whole, other_warm, in_teachers_words, without = trials
    assert [one.teacher_prompts for one in trials] == [False, False, True, True, False]
    assert (whole.start, without.start) == (warm.after_cycles, warm.after_cycles)
    assert in_teachers_words.start == other_warm.after_cycles != warm.after_cycles


def test_the_table_says_how_far_seeds_lie_apart():
    def result(bad):
        row = {measure: {"mean": bad} for measure in arms.MEASURES}
        general = {"collection@8": {"mean": 1.0}}
        return {"cycles": 10, "rows": {"@8": row, "@4": row}, "general": general}

    lines = arms.table({"all": [result(0.25), result(0.75)], "no TS": [result(0.5)]}).splitlines()
    assert "0.500 (0.250-0.750)" in lines[2]
    assert "| no TS | 10 | 0.500 |" in lines[3]


def test_what_is_kept_is_not_made_again_and_never_passes_for_other_settings(tmp_path):
    path, made = tmp_path / "seed0" / "arm.json", []

    def make():
        made.append(1)
        return {"cycles": len(made)}

    assert kept(path, {"evaluations": 3}, make) == {"cycles": 1}
    assert kept(path, {"evaluations": 3}, make) == {"cycles": 1}
    with pytest.raises(ValueError, match=r"arm\.json was made with \{'evaluations': 3\}.*another --out"):
        kept(path, {"evaluations": 4}, make)
    assert made == [1]
