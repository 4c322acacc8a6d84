"""The regressions on the teachers' velocities: where they are taken, from whom, at which price."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import mse_loss

from collectionlora.collection.layouts import read_lora
from collectionlora.training.data import Batch
from collectionlora.training.distiller import STUDENT, Draws
from collectionlora.training.flow import few_step_sigmas, rollout
from collectionlora.training.lora import linear_shapes
from collectionlora.training.randomness import integers, noise_like, uniform


def batch_of(world):
    """Two effects and, between them, a sample of the general stream."""
    effects = world.lessons.effects
    return Batch.of([effects["neon"][0], world.lessons.general[1], effects["frost"][0]], range(3))


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_imitation_regresses_on_the_teachers_velocity_where_they_come_by(guidance, tiny, teachers):
    world = tiny.world(teachers, {"objective": {"guidance": guidance, "shift": 2.0}}, stir=True)
    batch, draws = batch_of(world), Draws(0, 3, "student")
    term = world.distiller.imitation(batch, draws)
    assert world.cost == 3 * (5 * (2 if guidance else 1) + 3)
    assert (term.name, term.positions) == ("imitation", (0, 1, 2))
    ends = uniform(draws.generators(batch, "way end"))
    x = noise_like(batch.source, draws.generators(batch, "way start"))
    stack = world.bank.stack(batch.teachers())

    def teacher(x, sigma):
        with world.roles.use_teachers(stack, stack.index(batch.effects)):
            cond, uncond = (world.net(x, sigma, text, batch.source) for text in (batch.teacher, batch.empty))
        return cond + guidance * (cond - uncond)

    times = [1 - (1 - ends) * k / 4 for k in range(5)]
    sigmas = [2 * t / (1 + t) for t in times]
    for now, then in pairwise(sigmas):
        x = x + (then - now).reshape(-1, 1, 1, 1) * teacher(x, now)
    with world.roles.use(STUDENT):
        student = world.net(x, sigmas[-1], batch.student, batch.source)
    expected = mse_loss(student, teacher(x, sigmas[-1]), reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(term.losses, expected)
    with world.roles.use(STUDENT):
        term.losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in world.trainer.student.parameters())


@pytest.mark.parametrize("below", [False, True], ids=["alone", "on a few-step LoRA"])
@pytest.mark.parametrize(("cycle", "steps"), [(3, 4), (4, 2)])
def test_on_policy_it_is_where_the_student_comes_by_in_few_steps(cycle, steps, below, tiny, teachers):
    few_step = read_lora(teachers / "comic.safetensors", linear_shapes(tiny.Net())) if below else None
    objective = {"guidance": 2.0, "steps": 4, "ts_steps": 2}
    world = tiny.world(teachers, {"objective": objective}, few_step=few_step, stir=True)
    batch, draws = batch_of(world), Draws(0, cycle, "student")
    term = world.distiller.on_policy(batch, draws)
    role = f"{STUDENT} + few step" if below else STUDENT
    stops = integers(draws.generators(batch, "rollout stop"), 0, steps)
    assert (term.name, term.role, term.positions) == ("on_policy", role, (0, 1, 2))
    assert world.cost == int(stops.sum()) + 3 * ((1 if below else 2) + 3)
    assert [call.role for call in world.calls if call.graph] == [role]

    sigmas, sigma = few_step_sigmas(steps), torch.tensor(few_step_sigmas(steps))[stops]
    noise = noise_like(batch.source, draws.generators(batch, "rollout start"))
    fresh = draws.generators(batch, "rollout noise")

    def student(x, sigma, active):
        return world.net(x, sigma, batch.student[active], batch.source[active])

    with world.roles.use(role):
        x = rollout(student, noise, sigmas, stops, fresh)
        ours = student(x, sigma, torch.arange(3))
    stack = world.bank.stack(batch.teachers())
    with world.roles.use_teachers(stack, stack.index(batch.effects), "few step" if below else None):
        theirs = world.net(x, sigma, batch.teacher, batch.source)
        uncond = world.net(x, sigma, batch.empty, batch.source)
    if not below:
        theirs = theirs + 2.0 * (theirs - uncond)
    expected = mse_loss(ours, theirs, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(term.losses, expected)
    with world.roles.use(role):
        term.losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in world.trainer.student.parameters())
