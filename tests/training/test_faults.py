"""What goes wrong in long runs: losses that are not finite, full disks, and kill -9."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from collectionlora.collection import atomic
from collectionlora.collection.errors import CollectionError
from collectionlora.training import checkpoint
from collectionlora.training.checkpoint import copied, load_state
from collectionlora.training.errors import DivergedError


def spoil(world, role, cycles, value):
    """Make the network's output in a role not finite during some cycles."""

    def hook(_module, _args, output):
        bad = world.roles.active == role and world.trainer.cycle in cycles
        return output * value if bad else None

    return world.net.register_forward_hook(hook)


def learnt(state):
    """The part of a state that a skipped cycle must not touch."""
    return {name: value for name, value in state.items() if name not in ("cycle", "skipped", "in_a_row")}


# -- losses that are not finite --


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize(
    ("role", "named"),
    [("student", {"bs", "ts", "fm"}), ("fake", {"fake", "gradient of the student"})],  # it scores for both
)
def test_a_cycle_whose_loss_is_not_finite_leaves_no_trace_and_is_counted(role, named, value, tiny, teachers):
    values = {"cycles": 5, "ema": 0.9, "p_effect": 1.0}
    world = tiny.world(teachers, values)
    spoil(world, role, (1, 3), value)
    states = [learnt(tiny.live(world.trainer))]
    records = []
    for record in world.trainer.run():
        records.append(record)
        states.append(learnt(tiny.live(world.trainer)))
    assert [record.skipped for record in records] == [False, True, False, True, False]
    assert [record.cycle for record in records] == list(range(5))
    for record in (records[1], records[3]):
        assert set(record.not_finite) & named
        assert record.losses == {}
        assert record.lr > 0
    assert world.trainer.skipped == 2
    for cycle, record in enumerate(records):
        assert tiny.same(states[cycle], states[cycle + 1]) == record.skipped


def test_three_cycles_in_a_row_end_the_run_and_keep_the_last_good_state(tiny, teachers, tmp_path):
    world = tiny.world(teachers, {"cycles": 9})
    handle = spoil(world, "student", (1, 2, 4, 5, 6), math.nan)
    run = world.trainer.run()
    assert [next(run).skipped for _ in range(6)] == [False, True, True, False, True, True]
    good = learnt(tiny.live(world.trainer))
    with pytest.raises(
        DivergedError, match=r"bs.* not finite in 3 cycles in a row, up to cycle 6.*[Ll]ower lr"
    ):
        next(run)
    assert tiny.same(learnt(tiny.live(world.trainer)), good)
    world.trainer.save(tmp_path / "state")
    assert tiny.same(load_state(tmp_path / "state"), world.trainer._kept)
    assert tiny.same(learnt(load_state(tmp_path / "state")), good)
    handle.remove()
    assert len(list(world.trainer.run())) == 3  # whoever finds the cause can go on


def test_skipped_cycles_are_counted_across_a_resume(tiny, teachers, tmp_path):
    first = tiny.world(teachers)
    spoil(first, "student", (1, 2), math.nan)
    run = first.trainer.run()
    for _ in range(3):
        next(run)
    first.trainer.save(tmp_path / "state")
    second = tiny.world(teachers)
    spoil(second, "student", (3,), math.nan)
    second.trainer.resume(tmp_path / "state")
    assert second.trainer.skipped == 2
    with pytest.raises(DivergedError):
        next(second.trainer.run())


@pytest.mark.parametrize("role", ["student", "fake"])
def test_a_gradient_that_is_not_finite_skips_the_cycle_too(role, tiny, teachers):
    world = tiny.world(teachers, {"cycles": 3})
    parameter = next(iter(world.roles.adapters[role].up.values()))
    parameter.register_hook(lambda gradient: gradient * (math.inf if world.trainer.cycle == 1 else 1.0))
    before = None
    for record in world.trainer.run():
        assert record.skipped == (record.cycle == 1)
        if record.skipped:
            assert record.not_finite == (f"gradient of the {role}",)
            assert tiny.same(learnt(tiny.live(world.trainer)), before)
        before = learnt(tiny.live(world.trainer))


def test_the_fake_score_starts_as_the_student_even_if_the_last_warm_cycle_is_skipped(tiny, teachers):
    world = tiny.world(teachers, {"warm_cycles": 2, "p_effect": 1.0})
    spoil(world, "student", (1,), math.nan)
    run = world.trainer.run()
    assert [next(run).skipped for _ in range(2)] == [False, True]
    fake = copied(world.trainer.trained["fake"].state_dict())
    assert tiny.same(fake, copied(world.trainer.student.state_dict()))
    assert any(value.any() for name, value in fake.items() if name.startswith("up"))


# -- full disks --


def full_flush(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_write(_tensors, path: Path, _metadata) -> None:
    path.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("module", "name", "full"), [(atomic.os, "fsync", full_flush), (checkpoint, "save_file", full_write)]
)
def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run(module, name, full, tiny, teachers, tmp_path):
    path = tmp_path / "run" / "state.safetensors"
    whole, trainer = tiny.world(teachers).trainer, tiny.world(teachers).trainer
    list(whole.run())
    run = trainer.run()
    next(run)
    trainer.save(path)
    saved = path.read_bytes()
    next(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(CollectionError, match="disk is full, the previous file is untouched") as caught:
            trainer.save(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == saved
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load_state(path)["cycle"] == 1
    list(run)
    trainer.save(path)
    assert tiny.same(load_state(path), tiny.live(whole))


# -- kill -9 --


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_20_runs_killed_at_random_points_resume_to_the_same_weights(tmp_path):
    script = Path(__file__).with_name("kill_trainers.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a thread pool would not survive the fork
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "20"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cycles = json.loads(done.stdout)
    assert len(cycles) == 20
    assert all(0 <= cycle <= 5 for cycle in cycles)
