"""Every way of stopping and going on ends in the same weights, and a foreign checkpoint is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from collectionlora.training.checkpoint import CheckpointError, copied, load_state, save_state
from collectionlora.training.distiller import FAKE
from collectionlora.training.errors import Cancelled
from collectionlora.training.record import Record
from collectionlora.training.trainer import Trainer


def run_to(trainer: Trainer, cycle: int) -> list[Record]:
    """Records up to, not including, a cycle."""
    records = []
    for record in trainer.run():
        records.append(record)
        if trainer.cycle == cycle:
            break
    return records


def story(records: list[Record]) -> list[object]:
    """What of the records must repeat: all but times and memory."""
    return [(r.cycle, r.values, r.grad_norms, r.lr, r.not_finite) for r in records]


RUNS = {
    "plain": {},
    "paper": {"share_rollouts": False, "micro_batch": 2},
    "warm": {"warm_cycles": 3, "ema": 0.9},
    "imitating": {"warm_cycles": 1, "imitation_cycles": 3, "on_policy": 0.5},
    "on the same ways": {"warm_cycles": 1, "imitation_cycles": 18, "cycles": 20, "on_policy": 0.5},
    "cosine": {"lr_schedule": "cosine", "lr_warmup": 2, "ema": 0.5, "micro_batch": 1},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_after_every_cycle_is_bit_identical_to_an_uninterrupted_one(
    name, tiny, teachers, tmp_path
):
    whole = tiny.world(teachers, RUNS[name]).trainer
    path, records = tmp_path / "state.safetensors", []
    for record in whole.run():
        records.append(record)
        whole.save(tmp_path / f"{whole.cycle}")
    parts, found = tiny.world(teachers, RUNS[name]).trainer, []
    for stop in range(1, whole.cycle + 1):
        found += run_to(parts, stop)
        parts.save(path)
        assert path.read_bytes() == (tmp_path / f"{stop}").read_bytes()
        parts = tiny.world(teachers, RUNS[name]).trainer
        parts.resume(path)
        assert parts.cycle == stop
    assert story(found) == story(records)
    assert tiny.same(tiny.live(parts), tiny.live(whole))
    assert tiny.same(parts.result().up, whole.result().up)


def test_a_generator_left_and_begun_anew_goes_on(tiny, teachers):
    whole, parts = tiny.world(teachers).trainer, tiny.world(teachers).trainer
    list(whole.run())
    for stop in (1, 2, 5):
        run_to(parts, stop)
    list(parts.run())
    assert tiny.same(tiny.live(parts), tiny.live(whole))
    assert list(parts.run()) == []


def test_cancel_at_every_micro_step_leaves_the_last_finished_cycle(tiny, teachers):
    values = {
        "micro_batch": 2,
        "fake_ratio": 1,
        "ema": 0.9,
        "share_rollouts": False,
        "cycles": 2,
        "p_effect": 1.0,
    }
    asked, limit = 0, 10**9

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > limit

    whole = tiny.world(teachers, values).trainer
    list(whole.run())
    trainer = tiny.world(teachers, values, cancelled=cancelled).trainer
    for cycle in range(2):
        before, limit = tiny.live(trainer), -1
        while True:
            asked, limit = 0, limit + 1
            try:
                run_to(trainer, cycle + 1)
            except Cancelled:
                assert asked == limit + 1
                assert tiny.same(tiny.live(trainer), before)
                assert tiny.same(trainer._kept, before)
                assert trainer.distiller.roles.active == "base"
                assert all(parameter.grad is None for parameter in trainer.student.parameters())
            else:
                break
        assert limit == 2 * 3 + 2 * 2  # each term of each micro-batch, and between rollout and fake score
    assert tiny.same(tiny.live(trainer), tiny.live(whole))


class OutOfMemoryError(Exception):
    pass


@pytest.mark.parametrize("error", [OutOfMemoryError, KeyboardInterrupt])
def test_an_exception_at_any_evaluation_leaves_the_last_finished_cycle(error, tiny, teachers):
    values = {"fake_ratio": 1, "ema": 0.9, "cycles": 2}
    whole = tiny.world(teachers, values).trainer
    list(whole.run())
    world = tiny.world(teachers, values)
    run_to(world.trainer, 1)
    state, fatal = tiny.live(world.trainer), 0

    def fail(*_: object) -> None:
        if len(world.calls) > fatal:
            raise error

    world.net.register_forward_pre_hook(fail)
    while True:
        world.calls.clear()
        try:
            list(world.trainer.run())
        except error:
            assert tiny.same(tiny.live(world.trainer), state)
        else:
            break
        fatal += 1
    assert fatal >= 4 + 4 + 1 + 1
    assert tiny.same(tiny.live(world.trainer), tiny.live(whole))


# -- whose checkpoint --


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 3.0}, r"clip = 10.0 where this run has 3.0"),
        ({"objective": {"floor": 0.1}}, r"objective.floor = 0.0 where this run has 0.1"),
        ({"betas": [0.5, 0.9]}, r"betas = \[0.9, 0.999\] where this run has \[0.5, 0.9\]"),
        ({"rank": 3}, r"rank = 2 where this run has 3"),
        ({"ema": 0.5}, r"ema = 0.0 where this run has 0.5"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_its_first_difference(
    change, message, tiny, teachers, tmp_path
):
    path = tmp_path / "state.safetensors"
    tiny.world(teachers).trainer.save(path)
    other = tiny.world(teachers, change).trainer
    before = tiny.live(other)
    with pytest.raises(CheckpointError, match=message) as caught:
        other.resume(path)
    assert str(path) in str(caught.value)
    assert tiny.same(tiny.live(other), before)


def test_settings_that_change_no_cycle_may_differ(tiny, teachers, tmp_path):
    path = tmp_path / "state.safetensors"
    first = tiny.world(teachers).trainer
    run_to(first, 2)
    first.save(path)
    other = tiny.world(teachers, {"cycles": 9, "save_every": 3, "bank_ram": 1, "micro_batch": 2}).trainer
    other.resume(path)
    assert len(list(other.run())) == 7


def test_imitation_that_has_ended_goes_on_to_more_as_if_it_had_been_meant_to(tiny, teachers, tmp_path):
    def of(imitation, cycles, warm=0):
        lengths = {"warm_cycles": warm, "imitation_cycles": imitation, "cycles": cycles}
        return tiny.world(teachers, {**lengths, "on_policy": 0.5}).trainer

    path = tmp_path / "state.safetensors"
    first, whole, more = of(9, 9), of(12, 12), of(12, 12)
    run_to(first, 9)
    first.save(path)
    run_to(whole, 12)
    more.resume(path)
    run_to(more, 12)
    assert tiny.same(tiny.live(more), tiny.live(whole))
    matched, onward = of(9, 12), of(9, 12)  # or to what follows, for which there is no fake score yet
    assert FAKE not in load_state(path)
    run_to(matched, 12)
    onward.resume(path)
    run_to(onward, 12)
    assert tiny.same(tiny.live(onward), tiny.live(matched))
    matched.save(path)
    with pytest.raises(CheckpointError, match=r"12 cycles match distributions.*more than 9"):
        of(9, 9).resume(path)
    first.save(path)
    for imitation, warm in ((8, 0), (8, 1)):  # what was run would have been something else
        with pytest.raises(CheckpointError, match=r"(imitation|warm)_cycles = \d where this run has \d"):
            of(imitation, 12, warm).resume(path)


@pytest.mark.parametrize("kind", ["warm_cycles", "imitation_cycles"])
def test_a_start_that_is_cut_short_where_it_stands_goes_on_as_if_it_had_been_meant_to(
    kind, tiny, teachers, tmp_path
):
    def of(start):
        return tiny.world(teachers, {"warm_cycles": 0, kind: start, "cycles": 7, "on_policy": 0.5}).trainer

    path = tmp_path / "state.safetensors"
    first, whole, cut = of(6), of(4), of(4)
    run_to(first, 4)
    first.save(path)
    run_to(whole, 7)
    cut.resume(path)
    run_to(cut, 7)
    assert tiny.same(tiny.live(cut), tiny.live(whole))


def test_pictures_of_another_size_are_refused(tiny, teachers, tmp_path):
    path = tmp_path / "state.safetensors"
    tiny.world(teachers).trainer.save(path)
    learnt = tiny.lessons()
    first, *others = learnt.general
    wide = replace(first, source=torch.cat([first.source, first.source], -1))
    other = tiny.world(teachers, lessons_=replace(learnt, general=[wide, *others])).trainer
    with pytest.raises(CheckpointError, match=r"made with lessons.sizes = "):
        other.resume(path)


def test_a_resumed_run_may_take_another_learning_rate(tiny, teachers, tmp_path):
    path = tmp_path / "state.safetensors"
    first = tiny.world(teachers).trainer
    run_to(first, 2)
    first.save(path)
    other = tiny.world(teachers, {"lr": 0.003, "fake_lr": 0.001}).trainer
    other.resume(path)
    record = next(other.run())
    assert record.lr == other.optimizers["student"].param_groups[0]["lr"] == 0.003
    assert other.optimizers["fake"].param_groups[0]["lr"] == 0.001


@pytest.mark.parametrize(
    ("setting", "then", "now"),
    [("anchor", "image", "path"), ("fake_base", "base", "teacher"), ("half_share", 0.0, 0.5)],
)
def test_a_state_older_than_a_setting_goes_on_where_it_was_made(setting, then, now, tiny, teachers, tmp_path):
    path, old = tmp_path / "state.safetensors", {"objective": {setting: then}}
    first = tiny.world(teachers, old).trainer
    run_to(first, 1)
    first.save(path)
    state = load_state(path)
    del state["config"]["objective"][setting]
    save_state(path, state)
    tiny.world(teachers, old).trainer.resume(path)
    with pytest.raises(CheckpointError, match=rf"objective\.{setting} = {then!r} where this run has {now!r}"):
        tiny.world(teachers, {"objective": {setting: now}}).trainer.resume(path)


def test_a_checkpoint_of_other_lessons_is_refused(tiny, teachers, tmp_path):
    path = tmp_path / "state.safetensors"
    tiny.world(teachers).trainer.save(path)
    other = tiny.world(teachers, lessons_=tiny.lessons(general=2)).trainer
    with pytest.raises(CheckpointError, match=r"lessons\.general = 3 where this run has 2"):
        other.resume(path)


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tiny, teachers, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    tiny.world(teachers).trainer.save(path)
    monkeypatch.setattr(tiny, "WIDTH", 6)
    folder = tmp_path / "wide"
    folder.mkdir()
    tiny.write_teachers(folder)
    other = tiny.world(folder).trainer
    run_to(other, 1)
    before = tiny.live(other)
    with pytest.raises(CheckpointError, match="does not fit this model") as caught:
        other.resume(path)
    assert str(path) in str(caught.value)
    assert tiny.same(tiny.live(other), before)


def test_a_state_of_an_earlier_version_has_a_fake_score_that_nothing_asks_for(tiny, teachers, tmp_path):
    path = tmp_path / "state.safetensors"
    values = {"cycles": 6, "objective": {"bs_weight": 0.0, "ts_weight": 0.0}}
    first, other = (tiny.world(teachers, values).trainer for _ in range(2))
    run_to(first, 3)
    state = tiny.live(first)
    student = state["optimizers"]["student"]
    older = {**state, FAKE: state["student"], "optimizers": {"student": student, FAKE: {}}}
    save_state(path, copied(older))
    other.resume(path)
    run_to(first, 6)
    run_to(other, 6)
    assert tiny.same(tiny.live(other), tiny.live(first))
