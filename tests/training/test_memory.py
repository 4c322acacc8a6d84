"""The memory plan counts what a run holds."""

from __future__ import annotations

import pytest

from collectionlora.training.config import distillation
from collectionlora.training.memory import ADVICE, GIB, memory_plan

SHAPES = {"a": (30, 10), "b": (20, 20)}


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 16), ("adamw8bit", 10)])
def test_adapters_count_weights_gradients_and_moments(optimizer: str, each: int) -> None:
    config = distillation({"rank": 4, "optimizer": optimizer})
    plan = memory_plan(1000, 10**6, SHAPES, 500, config)
    assert plan.parts["student and fake score"] == 2 * 4 * (40 + 40) * each
    assert plan.parts["base"] == 1000
    assert (
        plan.parts["teachers"] == 2 * 2 * 500
    )  # one sample a forward: its teacher and the next one, float32
    assert plan.fits


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    plan = memory_plan(20 * GIB, 16 * GIB, SHAPES, 0, distillation())
    assert not plan.fits
    assert str(plan).endswith(ADVICE)
    assert "of 16.00" in str(plan)
    assert ADVICE not in str(memory_plan(GIB, 16 * GIB, SHAPES, 0, distillation()))
