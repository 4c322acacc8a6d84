"""The baseline is the paper's schedule: its price, and the same student update as ours."""

from __future__ import annotations

import pytest
import torch

from collectionlora.bench.paper import PaperDistiller
from collectionlora.training.config import distillation
from collectionlora.training.data import Batch
from collectionlora.training.distiller import STUDENT, Draws
from collectionlora.training.trainer import Trainer


@pytest.fixture
def world(tiny, teachers):
    config = distillation({**tiny.SMALL, "fake_ratio": 5, "cycles": 4, "p_effect": 0.5}, "paper")
    return tiny.world(teachers, config, stir=True)


def papers(world):
    return PaperDistiller(world.distiller.velocity, world.roles, world.bank, world.distiller.objective)


def test_a_cycle_costs_77_in_both_streams(world):
    trainer = Trainer(papers(world), world.lessons, world.trainer.config)
    streams = set()
    for record in trainer.run():
        streams |= set(record.effects)
        assert world.cost == world.trainer.config.batch * 77
        world.calls.clear()
    assert "general" in streams
    assert len(streams) > 1


def test_the_students_update_is_ours(world):
    samples = [world.lessons.effects["frost"][0], world.lessons.general[0], world.lessons.effects["neon"][1]]
    batch, draws = Batch.of(samples, range(3)), Draws(0, 1, "student")
    gradients = []
    for distiller in (world.distiller, papers(world)):
        student = world.roles.adapters[STUDENT]
        student.zero_grad()
        with world.roles.use(STUDENT):
            for term in distiller.student_terms(batch, draws):
                torch.autograd.backward(term.losses.sum())
        gradients.append([parameter.grad.clone() for parameter in student.parameters()])
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-4
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
