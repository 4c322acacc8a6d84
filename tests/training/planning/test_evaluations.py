"""Evaluations are counted as the trainer makes them."""

from __future__ import annotations

from typing import Any

import pytest

from collectionlora.training.config import Distillation, distillation
from collectionlora.training.planning.evaluations import (
    cycle_evaluations,
    imitation_evaluations,
    total,
    warm_evaluations,
)


def equivalents(config: Distillation, p_effect: float | None = None) -> float:
    return total(cycle_evaluations(config, config.p_effect if p_effect is None else p_effect)).equivalents


def test_a_cycle_costs_what_the_project_says() -> None:
    assert equivalents(distillation()) == 29
    assert equivalents(distillation(preset="paper")) == 51.5


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"share_rollouts": False},
        {"p_effect": 1.0},
        {"fake_ratio": 1},
        {"objective": {"guidance": 0.0}},
        {"objective": {"bs_weight": 0.0}},
        {"objective": {"ts_weight": 0.0}},
        {"objective": {"fm_weight": 0.0, "steps": 4, "ts_steps": 2}},
        {"p_effect": 1.0, "objective": {"bs_weight": 0.0, "ts_weight": 0.0}},
        {"objective": {"half_share": 0.5, "ts_weight": 0.0}},
        {"objective": {"half_share": 1.0, "steps": 5, "ts_steps": 2}, "share_rollouts": False},
        {"p_effect": 1.0, "warm_cycles": 110},
        {"warm_cycles": 10, "imitation_cycles": 100},
        {"imitation_cycles": 100, "objective": {"guidance": 0.0}},
        {"imitation_cycles": 120, "on_policy": 1.0},
        {"imitation_cycles": 120, "on_policy": 0.5, "imitation_gain": 1.5},
        {"p_effect": 1.0, "warm_cycles": 120},
        {
            "imitation_cycles": 120,
            "on_policy": 0.5,
            "objective": {"guidance": 0.0, "steps": 5, "ts_steps": 2},
        },
    ],
    ids=str,
)
def test_evaluations_are_those_that_the_trainer_makes(
    values: dict[str, Any], tiny: Any, teachers: Any
) -> None:
    cycles = 120
    world = tiny.world(teachers, {**values, "cycles": cycles})
    for _ in world.trainer.run():
        pass
    config = world.trainer.config
    kinds = [
        (config.warm_cycles, warm_evaluations(config.p_effect, config.micro_batch)),
        (
            config.imitation_cycles,
            imitation_evaluations(config, config.p_effect, micro_batch=config.micro_batch),
        ),
        (config.matching_cycles, cycle_evaluations(config, config.p_effect, config.micro_batch)),
    ]
    parts = [(count, part, samples) for count, kind in kinds for part, samples in kind]
    cost = sum(count * part.equivalents for count, part, _ in parts)
    assert world.cost / config.batch == pytest.approx(cost, rel=0.05)
    passes = sum(n * (part.adapter + part.teacher + part.gradient) / samples for n, part, samples in parts)
    assert len(world.calls) / config.batch == pytest.approx(passes, rel=0.05)


def test_gains_that_a_collection_brings_along_are_asked_for_from_the_start() -> None:
    def cost(gain: float, known: float) -> float:
        config = distillation({"imitation_gain": gain}, "imitation")
        return total(imitation_evaluations(config, 0.5, True, known=known)).equivalents

    late = 2 * (cost(1.5, 0.0) - cost(1.0, 0.0))  # found in the second half
    assert late > 0
    assert cost(1.0, 0.4) == pytest.approx(cost(1.0, 0.0) + 0.4 * late)
    assert cost(1.5, 1.0) == pytest.approx(cost(1.0, 0.0) + late)
    assert cost(1.5, 0.4) == pytest.approx(cost(1.0, 0.0) + 0.7 * late)
