"""The regressions on the teachers' velocities: from whom, and where new ways from noise have come to."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

from collectionlora.collection.layouts import read_lora
from collectionlora.training.data import Batch
from collectionlora.training.distiller import STUDENT
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.gains import LATE, RATE, Gains
from collectionlora.training.lora import linear_shapes
from collectionlora.training.losses import edit_shares
from collectionlora.training.randomness import generator, noise_like
from collectionlora.training.ways import APART, STEPS, Way

GUIDANCE = 2.0


def batch_of(world):
    """Two effects and, between them, a sample of the general stream."""
    effects = world.lessons.effects
    return Batch.of([effects["neon"][0], world.lessons.general[1], effects["frost"][0]], range(3))


def teacher(world, batch, x, sigma, guidance=GUIDANCE, below=None):
    """The velocity of each sample's teacher."""
    stack = world.bank.stack(batch.teachers())
    with torch.no_grad(), world.roles.use_teachers(stack, stack.index(batch.effects), below):
        cond, uncond = (world.net(x, sigma, text, batch.source) for text in (batch.teacher, batch.empty))
    return cond + guidance * (cond - uncond)


@pytest.mark.parametrize("guidance", [0.0, GUIDANCE])
@pytest.mark.parametrize("own", [False, True], ids=["teachers' way", "own way"])
@pytest.mark.parametrize("below", [False, True], ids=["alone", "on a few-step LoRA"])
def test_the_student_regresses_on_the_teachers_velocity(guidance, own, below, tiny, teachers):
    few_step = read_lora(teachers / "comic.safetensors", linear_shapes(tiny.Net())) if below else None
    world = tiny.world(teachers, {"objective": {"guidance": guidance}}, few_step=few_step, stir=True)
    batch, sigma = batch_of(world), torch.tensor([0.9, 0.5, 0.2])
    x = noise_like(batch.source, [generator(0, "x", i) for i in range(3)])
    term, x0 = world.distiller.imitation(batch, range(3), x, sigma, own)
    on_top = own and below
    role = f"{STUDENT} + below" if on_top else STUDENT
    assert (term.name, term.role) == ("on_policy" if own else "imitation", role)
    assert term.positions == (0, 1, 2)
    assert world.cost == 3 * ((2 if guidance and not on_top else 1) + 3)
    assert [call.role for call in world.calls if call.graph] == [role]

    learnt, leading = (
        teacher(world, batch, x, sigma, weight, "below" if on_top else None)
        for weight in (0.0 if below else guidance, guidance)  # a few-step LoRA guides by itself
    )
    with world.roles.use(role):
        ours = world.net(x, sigma, batch.student, batch.source)
    torch.testing.assert_close(term.losses, mse_loss(ours, learnt, reduction="none").flatten(1).mean(1))
    torch.testing.assert_close(x0, x - sigma.reshape(-1, 1, 1, 1) * (ours if own else leading))
    assert not x0.requires_grad
    with world.roles.use(role):
        term.losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in world.trainer.student.parameters())


def test_some_samples_of_a_batch_may_be_on_ways_of_the_other_kind(tiny, teachers):
    world = tiny.world(teachers, {"objective": {"guidance": 0.0}}, stir=True)
    batch, sigma = batch_of(world), torch.tensor([0.9, 0.5, 0.2])
    x = batch.source + 0.1
    everyone, _ = world.distiller.imitation(batch, range(3), x, sigma, own=False)
    some, x0 = world.distiller.imitation(batch, [0, 2], x[[0, 2]], sigma[[0, 2]], own=False)
    assert some.positions == (0, 2)
    assert len(x0) == 2
    torch.testing.assert_close(some.losses, everyone.losses[[0, 2]])


@pytest.mark.parametrize("own", [False, True], ids=["teachers' way", "own way"])
def test_a_gain_asks_for_more_of_an_edit(own, tiny, teachers):
    few_step = read_lora(teachers / "comic.safetensors", linear_shapes(tiny.Net()))
    world = tiny.world(teachers, {"objective": {"guidance": 0.0}}, few_step=few_step, stir=True)
    batch, sigma = batch_of(world), torch.tensor([0.9, 0.5, 0.2])
    x = batch.source + 0.1
    plain, x0 = world.distiller.imitation(batch, range(3), x, sigma, own)
    before = world.cost
    term, same = world.distiller.imitation(batch, range(3), x, sigma, own, [None, None, 1.5])
    assert world.cost - before == before + 1  # one evaluation more, of the sample that has a gain
    assert plain.edits is None
    torch.testing.assert_close(same, x0)
    torch.testing.assert_close(term.losses[:2], plain.losses[:2])

    below = "below" if own else "base"
    taught = teacher(world, batch, x, sigma, 0.0, "below" if own else None)[2]
    with torch.no_grad():
        with world.roles.use(below):
            bare = world.net(x, sigma, batch.student, batch.source)[2]
        with world.roles.use(term.role):
            ours = world.net(x, sigma, batch.student, batch.source)[2]
    torch.testing.assert_close(term.losses[2], mse_loss(ours, bare + 1.5 * (taught - bare)))
    positions, shares = term.edits
    edit = taught - bare
    assert positions == (2,)
    torch.testing.assert_close(shares[0], ((ours - bare) * edit).sum() / edit.square().sum())


def test_gains_are_for_late_states_of_effects_and_make_up_for_what_is_missing():
    gains = Gains(1.5, begin=8)
    assert gains.of("frost", LATE, 8) is gains.of(None, 0.5, 8) is gains.of("frost", 0.5, 7) is None
    assert Gains(1.0).of("frost", 0.5, 8) is None
    assert gains.of("frost", 0.5, 8) == 1.0
    for _ in range(2000):  # students that learn three quarters of what they are asked for, and all
        gains.learn({"frost": [0.75 * gains.of("frost", 0.5, 8)], "neon": [gains.of("neon", 0.5, 8)] * 2})
    assert gains.effects == {"frost": pytest.approx(4 / 3), "neon": 1.0}
    gains.learn({"frost": [0.0] * 20, "neon": [0.5]})
    assert gains.effects == {"frost": 1.5, "neon": pytest.approx(1 + 0.5 * RATE)}


def test_gains_of_a_collection_that_is_extended_count_from_the_start():
    gains = Gains(1.5, begin=8, effects={"frost": 1.3})
    assert gains.of("frost", 0.5, 0) == 1.3
    assert gains.of("neon", 0.5, 0) is None
    above = Gains(1.5, effects={"frost": 1.6, "neon": 1.6})
    above.learn({"frost": [0.5], "neon": [1.5]})
    assert above.effects == {"frost": 1.6, "neon": pytest.approx(1.6 - 0.5 * RATE)}
    kept = Gains(1.0, effects={"frost": 1.3})  # a run that finds none
    kept.learn({"frost": [0.5], "neon": [0.5]})
    assert kept.effects == {"frost": 1.3}
    assert kept.of("frost", 0.5, 0) == 1.3


def test_an_edit_of_nothing_says_nothing_and_a_small_one_not_too_much():
    wanted = torch.zeros(4, 1, 8, 8)
    wanted[1:, :, :4] = torch.tensor([1.0, 0.05, 0.05]).reshape(3, 1, 1, 1)
    made = torch.stack([torch.ones(1, 8, 8), 0.75 * wanted[1], 9 * wanted[2], -wanted[3]])
    assert edit_shares(made, wanted).tolist() == [1.0, 0.75, 2.0, 0.0]


def test_a_run_finds_its_gains_and_goes_on_with_them(tiny, teachers, tmp_path):
    values = {"imitation_cycles": 40, "cycles": 40, "on_policy": 0.5, "imitation_gain": 1.5, "micro_batch": 2}
    whole, first, second = (tiny.world(teachers, values, stir=True).trainer for _ in range(3))
    records = list(whole.run())
    assert {"on_policy", "imitation"} >= {name for record in records for name in record.values}
    edits = [share for record in records for shares in record.edits.values() for share in shares]
    assert edits
    assert min(record.cycle for record in records if record.edits) >= 20  # in the second half alone
    assert "general" not in {effect for record in records for effect in record.edits}
    assert whole.gains.effects
    assert all(1 <= gain <= 1.5 for gain in whole.gains.effects.values())
    for _ in zip(range(35), first.run()):
        pass
    first.save(tmp_path / "state.safetensors")
    second.resume(tmp_path / "state.safetensors")
    assert second.gains.effects == first._kept["gains"] != {}
    list(second.run())
    assert second.gains.effects == whole.gains.effects
    assert tiny.same(tiny.live(second), tiny.live(whole))


def visits(world, monkeypatch):
    """All that a run visits: {(cycle, number): Way}."""
    seen, visited = {}, world.trainer.ways.visited

    def spy(cycle):
        ways = visited(cycle)
        seen.update({(cycle, way.number): way for way in ways})
        return ways

    monkeypatch.setattr(world.trainer.ways, "visited", spy)
    for _ in world.trainer.run():
        pass
    return seen


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["teachers'", "own"])
def test_a_way_is_taken_a_step_further_at_every_visit(share, tiny, teachers, monkeypatch):
    cycles = 12 * APART
    objective = {"guidance": GUIDANCE, "shift": 2.0, "steps": 4, "ts_steps": 2}
    values = {
        "imitation_cycles": cycles,
        "cycles": cycles,
        "on_policy": share,
        "lr": 0.0,
        "objective": objective,
    }
    world = tiny.world(teachers, values, stir=True)
    seen = visits(world, monkeypatch)
    assert len(seen) == cycles * world.trainer.config.batch
    moved, ended = 0, set()
    for (cycle, number), way in seen.items():
        after = seen.get((cycle + APART, number))
        if after is None:
            continue
        if way.step + 1 == len(way.sigmas):
            assert (after.start, after.step, after.sigma) == (cycle + APART, 0, 1.0)
            ended.add(way.sigmas)
            continue
        assert (after.start, after.step, after.sample) == (way.start, way.step + 1, way.sample)
        batch, sigma = Batch.of([way.sample], [number]), torch.tensor([way.sigma])
        if share:
            with torch.no_grad(), world.roles.use(STUDENT):
                v = world.net(way.x[None], sigma, batch.student, batch.source)
            noise = noise_like(way.x[None], [generator(0, cycle, number, "way noise")])
            expected = (1 - after.sigma) * (way.x - way.sigma * v) + after.sigma * noise
        else:
            v = teacher(world, batch, way.x[None], sigma)
            expected = way.x + (after.sigma - way.sigma) * v
        torch.testing.assert_close(after.x, expected[0])
        moved += 1
    assert moved > cycles
    whole = {sigmas for sigmas in ended if len(sigmas) == max(map(len, ended))}
    if share:
        assert {few_step_sigmas(4, 2.0)[:-1], few_step_sigmas(2, 2.0)[:-1]} <= ended
    else:
        times = [[s / (2 - s) for s in sigmas] for sigmas in whole]
        assert {len(one) for one in times} == {1 + STEPS}
        for start, *then in times:
            assert start == 1
            assert 1 - 1 / STEPS < then[0] <= 1
            assert then == pytest.approx([then[0] - k / STEPS for k in range(STEPS)])


def test_ways_begin_at_noise_of_their_own_and_do_not_stop_together(tiny, teachers, monkeypatch):
    cycles = 12 * APART
    world = tiny.world(teachers, {"imitation_cycles": cycles, "cycles": cycles, "on_policy": 0.5})
    seen = visits(world, monkeypatch)
    starts = [way for (cycle, _), way in seen.items() if way.start == cycle]
    assert len({tuple(way.x.flatten().tolist()) for way in starts}) == len(starts)
    assert {way.own for way in starts} == {False, True}
    for cycle in range(6 * APART, cycles):
        steps = [seen[cycle, number].step for number in range(world.trainer.config.batch)]
        assert steps.count(0) < len(steps)
    late = [way.step for (cycle, _), way in seen.items() if cycle > 6 * APART]
    assert set(late) == set(range(8))
    assert late.count(0) < len(late) / 3


def test_a_way_is_its_name(tiny, teachers):
    world = tiny.world(teachers, {"imitation_cycles": 20, "cycles": 21, "on_policy": 0.5})
    ways = [Way.begin(world.lessons, world.trainer.config, 11, number) for number in (0, 1, 0)]
    assert torch.equal(ways[0].x, ways[2].x)
    assert ways[0].sigmas == ways[2].sigmas
    assert not torch.equal(ways[0].x, ways[1].x)
    for _ in world.trainer.run():
        pass
    assert world.trainer.ways.held == {}  # nothing is kept for cycles that do not imitate
