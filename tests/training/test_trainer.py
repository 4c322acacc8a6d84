"""The run: what an update does, and phases, schedules and averages over the cycles."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from collectionlora.training.checkpoint import copied
from collectionlora.training.distiller import FAKE, STUDENT, Draws
from collectionlora.training.trainer import Trainer
from collectionlora.training.workers import Workers

# -- updates --


@pytest.mark.parametrize("share", [True, False])
def test_accumulating_micro_batches_equals_one_large_batch(share, tiny, teachers):
    def run(micro: int) -> tuple[list[Tensor], list[float]]:
        values = {"micro_batch": micro, "share_rollouts": share, "cycles": 3, "ema": 0.9}
        world = tiny.world(teachers, values, dtype=torch.float64, stir=True)
        losses = []
        for record in world.trainer.run():
            for effects in record.values.values():
                losses += [value for effect in sorted(effects) for value in effects[effect]]
        adapters = (world.trainer.student, world.trainer.trained["fake"])
        return [tensor for adapter in adapters for tensor in adapter.state_dict().values()], losses

    tensors, losses = run(4)
    for micro in (1, 2):
        others, other_losses = run(micro)
        for one, other in zip(tensors, others):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert other_losses == pytest.approx(losses, abs=1e-10)


def test_the_gradient_is_the_weighted_sum_of_terms_over_the_whole_batch(tiny, teachers, monkeypatch):
    objective = {"bs_weight": 0.5, "ts_weight": 2.0, "fm_weight": 3.0}
    values = {"objective": objective, "cycles": 1, "clip": 1e6, "micro_batch": 2}
    world = tiny.world(teachers, values, dtype=torch.float64, stir=True)
    trainer, seen = world.trainer, {}
    (batch,) = whole_batch(trainer)
    total = 0.0
    with world.roles.use(STUDENT):
        for term in world.distiller.student_terms(batch, Draws(0, 0, "student")):
            total = total + objective[f"{term.name}_weight"] * term.losses.sum() / len(batch)
        total.backward()
    expected = [parameter.grad.clone() for parameter in trainer.student.parameters()]
    assert len(batch.seeded()) < len(batch)
    monkeypatch.setattr(
        trainer.optimizers[STUDENT],
        "step",
        lambda: seen.update(found=[parameter.grad.clone() for parameter in trainer.student.parameters()]),
    )
    (record,) = trainer.run()
    for one, other in zip(seen["found"], expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected))
    assert record.grad_norms[STUDENT] == pytest.approx(norm, rel=1e-6)


def whole_batch(trainer: Trainer):
    """The batches of the first update, as one."""
    found = trainer.config
    trainer.config = dataclasses.replace(found, micro_batch=found.batch)
    batches = trainer._batches(0)
    trainer.config = found
    return batches


def test_a_gradient_is_clipped_and_its_norm_reported_before(tiny, teachers, monkeypatch):
    world = tiny.world(teachers, {"clip": 1e-3, "cycles": 1}, stir=True)
    clipped = []
    for role in (STUDENT, FAKE):
        parameters = list(world.roles.adapters[role].parameters())
        monkeypatch.setattr(
            world.trainer.optimizers[role],
            "step",
            lambda parameters=parameters: clipped.append(
                sum(float(p.grad.square().sum()) for p in parameters)
            ),
        )
    (record,) = world.trainer.run()
    assert len(clipped) == 3
    assert all(math.sqrt(square) == pytest.approx(1e-3, rel=1e-2) for square in clipped)
    assert all(norm > 1e-2 for norm in record.grad_norms.values())


def test_training_lowers_the_losses_it_trains(tiny, teachers):
    world = tiny.world(teachers, {"cycles": 61, "warm_cycles": 60, "p_effect": 1.0, "lr": 0.05})
    losses = [record.losses["fm"] for record in world.trainer.run()]
    assert sum(losses[40:60]) < 0.8 * sum(losses[:20])


def test_a_record_tells_losses_by_term_and_effect(tiny, teachers):
    world = tiny.world(teachers, {"cycles": 1, "batch": 8, "micro_batch": 2})
    (record,) = world.trainer.run()
    samples = world.lessons.draw(0, 0, range(8), 0.5)
    effects = [sample.effect or "general" for sample in samples]
    assert {"general"} < set(effects)
    counted = {term: sum(map(len, found.values())) for term, found in record.values.items()}
    assert counted == {
        "bs": 8,
        "ts": 8 - effects.count("general"),
        "fm": 8 - effects.count("general"),
        "fake": 2 * 8,
    }
    assert set(record.effects) == set(effects)
    assert set(record.effects["general"]) == {"bs", "fake"}
    every = [value for values in record.values["bs"].values() for value in values]
    assert record.losses["bs"] == pytest.approx(sum(every) / 8)
    assert set(record.seconds) == {"student", "fake"}
    assert record.memory > 0
    assert not record.skipped


def test_the_base_is_bit_identical_afterwards(tiny, teachers):
    world = tiny.world(teachers, {"cycles": 2})
    before = copy.deepcopy(world.net.state_dict())
    list(world.trainer.run())
    world.roles.detach()
    assert tiny.same(world.net.state_dict(), before)
    assert not any(parameter.requires_grad for parameter in world.net.parameters())
    assert not any(module._forward_hooks for module in world.net.modules())


def test_teachers_are_prefetched_only_where_they_are_needed(tiny, teachers, monkeypatch):
    for values, needed in (({}, True), ({"objective": {"bs_weight": 0.0, "ts_weight": 0.0}}, False)):
        world = tiny.world(teachers, {"cycles": 3, "warm_cycles": 2, **values})
        asked: list[tuple[int, tuple[str, ...]]] = []
        prefetch = world.bank.prefetch
        monkeypatch.setattr(
            world.bank,
            "prefetch",
            lambda names, w=world, a=asked, p=prefetch: (a.append((w.trainer.cycle, tuple(names))), p(names)),
        )
        list(world.trainer.run())
        assert {cycle for cycle, _ in asked} == ({2} if needed else set())


@pytest.mark.parametrize("micro", [1, 4])
def test_no_teacher_stays_prefetched(micro, tiny, teachers):
    one = tiny.lessons(general=0)
    same = dataclasses.replace(one, effects={"neon": one.effects["neon"]})
    for lessons in (None, same):
        world = tiny.world(teachers, {"cycles": 2, "micro_batch": micro}, lessons_=lessons)
        list(world.trainer.run())
        assert not world.bank._coming


def test_without_any_teacher_image_a_run_that_needs_some_is_refused(tiny, teachers):
    without = tiny.lessons(targets=False)
    for values in ({"warm_cycles": 2}, {"objective": {"bs_weight": 0.0}}):
        with pytest.raises(ValueError, match="no sample has a teacher image"):
            tiny.world(teachers, values, lessons_=without)
    list(tiny.world(teachers, {"cycles": 1}, lessons_=without).trainer.run())


# -- schedules --


def rates(tiny, teachers, **values) -> list[float]:
    world = tiny.world(teachers, {"cycles": 4, "lr": 0.1, "fake_lr": 0.02, **values})
    found = []
    for record in world.trainer.run():
        for role, rate in ((STUDENT, 0.1), (FAKE, 0.02)):
            (group,) = world.trainer.optimizers[role].param_groups
            assert group["lr"] == pytest.approx(record.lr * rate / 0.1)
        found.append(record.lr / 0.1)
    return found


def test_learning_rates_follow_their_schedule(tiny, teachers):
    assert rates(tiny, teachers) == [1, 1, 1, 1]
    falling = rates(tiny, teachers, cycles=10, lr_schedule="hold")
    assert falling == pytest.approx([1] * 9 + [0.5])
    assert rates(tiny, teachers, lr_schedule="cosine") == pytest.approx(
        [0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4)]
    )
    assert rates(tiny, teachers, lr_warmup=2) == pytest.approx([0.5, 1, 1, 1])


def test_the_moving_average_is_what_is_saved_and_has_no_memory_of_the_start(tiny, teachers):
    world = tiny.world(teachers, {"ema": 0.9, "cycles": 4})
    average = copied(world.trainer.student.state_dict())
    for record in world.trainer.run():
        decay = min(0.9, (1 + record.cycle) / (10 + record.cycle))
        for name, value in world.trainer.student.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    result = world.trainer.result()
    for path in result.up:
        key = "up." + path.replace(".", "/")
        torch.testing.assert_close(result.up[path], average[key])
        assert not torch.equal(result.up[path], world.trainer.student.state_dict()[key])
        assert result.alpha[path] == 2.0


def test_without_moving_average_the_student_itself_is_the_result(tiny, teachers):
    world = tiny.world(teachers, {"cycles": 1})
    list(world.trainer.run())
    assert tiny.same(world.trainer.result().up, world.trainer.student.weights().up)


def test_warm_cycles_regress_only_and_then_the_fake_score_starts_as_the_student(tiny, teachers):
    world = tiny.world(teachers, {"warm_cycles": 2, "cycles": 3, "objective": {"fake_base": "base"}})
    trainer = world.trainer
    start = copied(trainer.trained["fake"].state_dict())
    run = trainer.run()
    first = next(run)
    assert list(first.values) == ["fm"]
    assert {call.role for call in world.calls} == {STUDENT}
    assert tiny.same(trainer.trained["fake"].state_dict(), start)
    assert list(next(run).values) == ["fm"]
    assert tiny.same(copied(trainer.trained["fake"].state_dict()), copied(trainer.student.state_dict()))
    assert set(next(run).values) == {"bs", "ts", "fm", "fake"}
    assert not tiny.same(copied(trainer.trained["fake"].state_dict()), copied(trainer.student.state_dict()))


def test_imitation_follows_the_warm_cycles_and_needs_no_teacher_image(tiny, teachers):
    values = {"warm_cycles": 1, "imitation_cycles": 1, "cycles": 3, "objective": {"fake_base": "base"}}
    trainer = tiny.world(teachers, values).trainer
    run = trainer.run()
    assert [list(next(run).values) for _ in range(2)] == [["fm"], ["imitation"]]
    assert tiny.same(copied(trainer.trained["fake"].state_dict()), copied(trainer.student.state_dict()))
    assert set(next(run).values) == {"bs", "ts", "fm", "fake"}
    alone = tiny.world(teachers, {"imitation_cycles": 1, "cycles": 2}, lessons_=tiny.lessons(targets=False))
    assert list(next(alone.trainer.run()).values) == ["imitation"]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_imitation_is_on_policy_and_a_run_may_end_with_it(share, tiny, teachers):
    values = {"warm_cycles": 1, "imitation_cycles": 12, "on_policy": share, "cycles": 13}
    trainer = tiny.world(teachers, values).trainer
    warm, *terms = (set(record.values) for record in trainer.run())
    assert warm == {"fm"}
    kinds = {0.0: {"imitation"}, 1.0: {"on_policy"}}.get(share, {"imitation", "on_policy"})
    assert set().union(*terms) == kinds
    assert all(up.abs().sum() > 0 for up in trainer.result().up.values())


def test_over_teachers_the_fake_score_starts_as_they_are_and_pulls_nowhere(tiny, teachers):
    objective = {"guidance": 0.0, "fm_weight": 0.0, "fake_base": "teacher"}
    world = tiny.world(teachers, {"warm_cycles": 1, "cycles": 2, "objective": objective})
    run = world.trainer.run()
    next(run)
    fake = copied(world.trainer.trained["fake"].state_dict())
    assert not any(tensor.any() for name, tensor in fake.items() if name.startswith("up."))
    record = next(run)
    assert record.losses["bs"] == record.losses["ts"] == pytest.approx(0, abs=1e-12)
    assert record.losses["fake"] > 0
    assert not tiny.same(copied(world.trainer.trained["fake"].state_dict()), fake)


def test_an_update_without_a_term_changes_nothing_in_any_number_of_processes(tiny, teachers, monkeypatch):
    for count in (1, 2):
        values = {"warm_cycles": 4, "cycles": 4, "lr": 0.1, "batch": 2, "micro_batch": 1}
        trainer = tiny.world(teachers, values).trainer
        trainer.workers = Workers(0, count)
        for name, stub in (("add_up", lambda *_: None), ("gather", lambda self, thing: [thing] * self.count)):
            monkeypatch.setattr(Workers, name, stub)
        records = trainer.run()
        next(records)  # from now on the optimizer has momentum
        moved = copied(trainer.student.state_dict())
        with monkeypatch.context() as general:
            general.setattr(type(trainer.lessons), "draw", lambda self, *_: [self.general[0]] * 2)
            next(records)
        for name, value in trainer.student.state_dict().items():
            assert torch.equal(value, moved[name])
