"""`make bench`: both schedules from one start, ours with the paper's time, and what was measured in words."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

from collectionlora.bench import compare
from collectionlora.bench import trial as trial_module
from collectionlora.bench.paper import PaperDistiller
from collectionlora.bench.trial import Outcome, Trial, run_trial
from collectionlora.training.distiller import Distiller


@pytest.fixture
def ran(monkeypatch):
    """Trials in the order in which they were run; a cycle of the paper's takes 3 seconds, one of ours 1."""
    trials, judged = [], []

    def run(some):
        trials.extend(some)
        made = []
        for trial in some:
            slow = trial.distiller is PaperDistiller
            cycles = round(trial.seconds) if trial.seconds else trial.distill.cycles
            seconds = trial.distill.cycles * (3.0 if slow else 1.0)
            made.append(
                Outcome(trial.distill.cycles, cycles, seconds, 77.0 if slow else 29.0, 2**30, 5.0, {"a": "b"})
            )
        return made

    def judge(files, prompts, images, seed):
        judged.append((files, dict(prompts), images, seed))
        return {
            name: {measure: {"mean": 0.5, "low": 0.4, "high": 0.6} for measure in compare.MEASURES}
            for name in files
        }

    monkeypatch.setattr(compare, "run_trials", run)
    monkeypatch.setattr(compare, "warmed", lambda trial, cycles: trial.out / f"warm{cycles}")
    monkeypatch.setattr(compare, "_judged", judge)
    return trials, judged


def arguments(tmp_path):
    return argparse.Namespace(out=tmp_path, cycles=10, warm=4, pictures=2, images=3)


def test_both_schedules_have_one_start_and_ours_the_papers_time(ran, tmp_path):
    trials, judged = ran
    result = compare.run_seed(arguments(tmp_path), seed=5)
    paper, ours, *counted = trials
    assert (paper.distiller, ours.distiller) == (PaperDistiller, Distiller)
    assert {trial.start for trial in trials} == {tmp_path / "seed5" / "warm4"}
    assert (paper.seconds, ours.seconds) == (0.0, 30.0)
    changed = replace(ours.distill, share_rollouts=False)
    assert paper.distill == replace(changed, objective=replace(changed.objective, anchor="image"))
    assert (paper.distill.fake_ratio, paper.distill.p_effect, paper.distill.seed) == (5, 0.5, 5)
    assert [trial.distiller for trial in counted] == [PaperDistiller, Distiller]
    assert {trial.distill.objective.guidance for trial in counted} == {compare.PAPER_GUIDANCE}
    assert [trial.distill.objective.anchor for trial in counted] == ["image", "path"]
    assert [trial.distill.share_rollouts for trial in counted] == [False, True]
    [(files, prompts, images, seed)] = judged
    assert (prompts, images, seed) == ({"a": "b"}, 3, 5)
    assert files["ours"] == ours.after_cycles != files["ours, same time"] == ours.after_budget
    assert (result["paper"]["cycles_in_equal_time"], result["ours"]["cycles_in_equal_time"]) == (10, 30)


def test_the_report_has_costs_as_means_and_qualities_of_each_seed(ran, tmp_path):
    runs = [compare.run_seed(arguments(tmp_path), seed) for seed in (0, 1)]
    runs[1]["ours"]["seconds_per_cycle"] = 2.0
    content = compare.summary(runs) | {"seeds": [0, 1]}
    assert json.loads(json.dumps(content)) == content
    assert content["forward_equivalents_per_cycle"] == {"paper": 77.0, "ours": 29.0}
    assert content["seconds_per_cycle"] == {"paper": 3.0, "ours": 1.5}
    assert len(content["quality_at_equal_updates"]["ours"]) == len(content["quality_of_the_start"]) == 2
    lines = compare.table(content).splitlines()
    assert any(line.split() == ["seconds_per_cycle", "3", "1.5", "2.00"] for line in lines)
    assert sum("0.500 [0.400, 0.600]" in line for line in lines) == 2 * 2 * len(compare.MEASURES)


def test_a_trial_of_so_many_seconds_goes_on_until_they_are_spent(tmp_path, monkeypatch):
    def few(trial):
        run = whole(trial)
        return replace(run, lists=replace(run.lists, general=run.lists.general[:2]))

    whole = trial_module._run
    monkeypatch.setattr(trial_module, "_run", few)
    config = replace(compare.settings(1, 0), batch=1, micro_batch=1, rank=2, alpha=2.0, fake_ratio=1)
    one = run_trial(Trial("one", ("sepia",), 1, config, tmp_path))
    assert (one.timed, one.cycles) == (1, 1)
    trial = Trial("more", ("sepia",), 1, config, tmp_path, seconds=3 * one.seconds + 0.5)
    more = run_trial(trial)
    assert more.timed == 1 < more.cycles
    assert trial.after_cycles.exists()
    assert trial.after_budget.exists()
