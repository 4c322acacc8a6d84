"""The student on top of a LoRA of few-step sampling: where it is on, what learns, what they are together."""

from __future__ import annotations

import pytest
import torch

from collectionlora.collection.layouts import read_lora
from collectionlora.training.data import Batch
from collectionlora.training.distiller import FAKE, STUDENT, Draws
from collectionlora.training.lora import LoraAdapter, added_up, linear_shapes

BOTH = "student + below"


@pytest.fixture
def few_step(tiny, teachers):
    """Any LoRA; one that adapts what the student does not, too."""
    return read_lora(teachers / "comic.safetensors", linear_shapes(tiny.Net()))


def batch_of(world):
    samples = [samples[0] for samples in world.lessons.effects.values()]
    return Batch.of(samples, range(len(samples)))


def test_it_is_below_the_student_where_that_is_sampled_and_nowhere_else(tiny, teachers, few_step):
    world = tiny.world(teachers, few_step=few_step)
    batch, draws = batch_of(world), Draws(0, 0, "student")
    for term in world.distiller.student_terms(batch, draws):
        assert term.role == BOTH
        roles = {call.role for call in world.calls}
        assert roles <= {BOTH, FAKE, "teachers frost, neon, comic"}
        assert all(call.role == BOTH for call in world.calls if call.graph)
        world.calls.clear()
        with world.distiller.use(term.role, batch):
            term.losses.sum().backward()
    for term in (
        world.distiller.imitation(batch, range(len(batch)), batch.source, torch.ones(len(batch)), False)[0],
        world.distiller.image_anchored(batch, range(len(batch)), draws, torch.zeros(len(batch))),
    ):
        assert term.role == STUDENT
        assert {call.role for call in world.calls if call.graph} == {STUDENT}


def test_both_together_are_one_lora_that_samples_alike(tiny, teachers, few_step):
    world = tiny.world(teachers, few_step=few_step, stir=True)
    together = added_up([world.trainer.student.weights(), few_step])
    assert max(map(len, together.down.values())) == world.trainer.student.rank + 3
    alone = tiny.world(teachers)
    alone.roles.adapters[STUDENT] = LoraAdapter.of(together)
    alone.roles.detach()
    alone.roles.attach()
    batch, draws = batch_of(world), Draws(0, 0, "student")
    with torch.no_grad():
        torch.testing.assert_close(alone.distiller.sample(batch, draws), world.distiller.sample(batch, draws))


@pytest.mark.parametrize("fake_base", ["base", "teacher"])
def test_training_changes_the_student_and_not_what_is_below_it(fake_base, tiny, teachers, few_step):
    values = {"warm_cycles": 1, "imitation_cycles": 1, "objective": {"fake_base": fake_base}}
    world = tiny.world(teachers, values, few_step=few_step)
    before = LoraAdapter.of(few_step).state_dict()
    for record in world.trainer.run():
        assert all(loss == loss for loss in record.losses.values())
        assert record.grad_norms[STUDENT] > 0
    assert tiny.same(world.roles.adapters["below"].state_dict(), before)
    assert all(up.abs().sum() > 0 for up in world.trainer.result().up.values())
