"""The time left counts kinds of cycles by what they evaluate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collectionlora.training.config import distillation
from collectionlora.training.planning.evaluations import cycle_evaluations, total
from collectionlora.training.planning.time_left import TimeLeft
from collectionlora.training.record import Record


def test_cheap_cycles_do_not_stand_for_dear_ones() -> None:
    config = distillation({"cycles": 10, "warm_cycles": 4})
    left = TimeLeft(config, 1.0, few_step=False)
    matching = (
        total(cycle_evaluations(config, 1.0)).equivalents / 3
    )  # of a warm cycle, an update of one sample
    assert matching > 5
    for cycle in range(4):
        each, found = left.after(Record(cycle, seconds={"student": 2.0}))
        assert each == 2.0
        assert found == pytest.approx(2.0 * (3 - cycle + 6 * matching))
    for cycle in range(4, 10):
        _, found = left.after(Record(cycle, seconds={"student": 1.5 * matching, "fake": 0.5 * matching}))
        assert found == pytest.approx(2.0 * (9 - cycle) * matching)


def test_old_cycles_are_forgotten() -> None:
    config = replace(distillation({"cycles": 100}), warm_cycles=100)
    left = TimeLeft(config, 0.7, few_step=False)
    for cycle in range(50):
        each, found = left.after(Record(cycle, seconds={"student": 9.0 if cycle < 30 else 1.0}))
    assert each == 1.0
    assert found == pytest.approx(50.0)
