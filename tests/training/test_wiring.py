"""Every number, role, text and seed of a configuration reaches the place that it is meant for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from collectionlora.collection.layouts import read_lora
from collectionlora.training import distiller as distiller_module
from collectionlora.training import flow
from collectionlora.training.data import Batch, TeacherPath
from collectionlora.training.distiller import FAKE, STUDENT, Draws
from collectionlora.training.errors import Cancelled
from collectionlora.training.gains import LATE
from collectionlora.training.lora import linear_shapes
from collectionlora.training.randomness import generators
from collectionlora.training.roles import RoleError
from collectionlora.training.ways import APART, Way


def test_resume_then_cancel_keeps_what_was_resumed(tiny, teachers, tmp_path):
    path = tmp_path / "state"
    first = tiny.world(teachers).trainer
    for _ in zip(range(3), first.run()):
        pass
    first.save(path)
    second = tiny.world(teachers, cancelled=lambda: True).trainer
    second.resume(path)
    with pytest.raises(Cancelled):
        next(second.run())
    assert second.cycle == 3
    second.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_losses_take_every_number_of_the_objective(tiny, teachers, monkeypatch):
    seen = []
    for name in ("uniform_shifted", "anchored_times", "dmd_direction"):
        plain = getattr(distiller_module, name)
        monkeypatch.setattr(
            distiller_module,
            name,
            lambda *a, n=name, p=plain, **k: (seen.append((n, *a[1:], *k.values())), p(*a, **k))[1],
        )
    objective = {"shift": 2.0, "ts_low": 0.25, "floor": 0.3, "double_shift": False}
    world = tiny.world(teachers, {"objective": objective}, stir=True)
    samples = [s[0] for s in world.lessons.effects.values()]
    batch, draws = Batch.of(samples, range(3)), Draws(0, 0, "student")
    terms = {t.name: t for t in world.distiller.student_terms(batch, draws)}
    world.distiller.fake_term(batch, terms["bs"].samples, draws)
    times = [one for one in seen if one[0] == "uniform_shifted"]
    assert times == [("uniform_shifted", 2.0), ("uniform_shifted", 0.25, 1.0, 2.0), ("uniform_shifted", 2.0)]
    assert [one[-2:] for one in seen if one[0] == "anchored_times"] == [(2.0, False)]
    assert [one[-1] for one in seen if one[0] == "dmd_direction"] == [0.3, 0.3]


@pytest.mark.parametrize("s", [2.0, 3.0])
@pytest.mark.parametrize("double", [True, False])
def test_anchored_times_are_never_below_their_anchor_at_any_shift(s, double):
    t_bs = flow.uniform_shifted(generators(0, 0, range(1000), "bs"), s=s)
    t = flow.anchored_times(generators(0, 0, range(1000), "ta"), t_bs, s, double)
    assert bool((t >= t_bs - 1e-6).all())


def test_paths_go_to_a_device_too(tiny):
    path = TeacherPath(torch.tensor([1.0]), torch.zeros(1, *tiny.LATENT))
    one = dataclasses.replace(tiny.lessons().effects["frost"][0], path=path)
    assert Batch.of([one], [0]).to(torch.device("meta")).paths == (path,)


def test_a_moving_average_keeps_the_scale(tiny, teachers):
    trainer = tiny.world(teachers, {"ema": 0.9, "cycles": 1, "alpha": 5.0}).trainer
    list(trainer.run())
    assert set(trainer.result().alpha.values()) == {5.0}


def test_backward_of_a_term_in_another_role_is_refused(tiny, teachers):
    world = tiny.world(teachers, stir=True)
    batch, draws = Batch.of([world.lessons.effects["neon"][0]], [0]), Draws(0, 0, "student")
    for term in world.distiller.student_terms(batch, draws):
        with world.roles.use(FAKE), pytest.raises(RoleError, match="call backward"):
            term.losses.sum().backward()


def test_imitation_draws_the_general_stream_too(tiny, teachers):
    world = tiny.world(teachers, {"imitation_cycles": 20, "cycles": 20, "on_policy": 0.5, "p_effect": 0.5})
    drawn = Counter(
        e == "general"
        for r in world.trainer.run()
        for v in r.values.values()
        for e, x in v.items()
        for _ in x
    )
    assert 0.25 < drawn[True] / drawn.total() < 0.75


def test_on_the_students_own_ways_alone_gains_are_found(tiny, teachers, monkeypatch):
    values = {"imitation_cycles": 24, "cycles": 24, "on_policy": 0.5, "imitation_gain": 1.5}
    world = tiny.world(teachers, values)
    plain = world.distiller.imitation

    def imitation(batch, positions, x, sigma, own, gains):
        term, x0 = plain(batch, positions, x, sigma, own, gains)
        if term.edits:
            term = dataclasses.replace(
                term, edits=(term.edits[0], torch.full_like(term.edits[1], float(own)))
            )
        return term, x0

    monkeypatch.setattr(world.distiller, "imitation", imitation)
    shares = [s for r in world.trainer.run() for some in r.edits.values() for s in some]
    assert set(shares) == {1.0}


@pytest.mark.parametrize("warm", [0, 20])
def test_the_first_ways_are_cut_wherever_imitation_begins(warm, tiny, teachers):
    values = {"warm_cycles": warm, "imitation_cycles": 20, "cycles": 40}
    world = tiny.world(teachers, values)
    ways = [
        Way.begin(world.lessons, world.trainer.config, warm + k, n) for k in range(APART) for n in range(4)
    ]
    assert len({len(way.sigmas) for way in ways}) > 2
    assert world.trainer.gains.begin == warm + 10


def test_the_optimizer_has_the_configurations_numbers(tiny, teachers):
    world = tiny.world(teachers, {"betas": [0.5, 0.9], "weight_decay": 0.2})
    for optimizer in world.trainer.optimizers.values():
        (group,) = optimizer.param_groups
        assert (tuple(group["betas"]), group["weight_decay"]) == ((0.5, 0.9), 0.2)


def test_on_a_path_and_in_warm_cycles_the_role_is_right(tiny, teachers):
    few = read_lora(teachers / "comic.safetensors", linear_shapes(tiny.Net()))
    world = tiny.world(teachers, {"warm_cycles": 1, "cycles": 2}, few_step=few)
    next(world.trainer.run())
    assert {call.role for call in world.calls} == {STUDENT}
    path = TeacherPath(torch.tensor([1.0]), torch.zeros(1, *tiny.LATENT))
    sample = dataclasses.replace(world.lessons.effects["frost"][0], path=path)
    world.calls.clear()
    term = world.distiller.path_anchored(Batch.of([sample], [0]), [0], Draws(0, 0, "student"))
    assert term.role == world.calls[0].role == "student + below"


def test_updates_of_a_cycle_draw_their_steps_apart(tiny, teachers, monkeypatch):
    world = tiny.world(teachers, {"objective": {"half_share": 0.5}})
    batch, seen = Batch.of([world.lessons.effects["frost"][0]], [0]), set()
    monkeypatch.setattr(
        distiller_module, "rollout", lambda v, noise, sigmas, *_: (seen.add(len(sigmas)), noise)[1]
    )
    for update in range(8):
        world.distiller.sample(batch, Draws(0, 0, f"fake {update}"))
    assert seen == {5, 9}


def test_ways_draw_by_the_seed(tiny, teachers):
    found = []
    for seed in (0, 1):
        world = tiny.world(teachers, {"imitation_cycles": 9, "cycles": 9, "on_policy": 1.0, "seed": seed})
        way = Way.begin(world.lessons, world.trainer.config, 0, 0)
        way = dataclasses.replace(way, sigmas=(1.0, 0.5), x=torch.zeros(tiny.LATENT))
        found.append(way.onward(torch.zeros(tiny.LATENT), 0))
    assert not torch.equal(*found)


def test_gains_are_asked_for_at_the_states_own_time(tiny, teachers, monkeypatch):
    values = {"imitation_cycles": 24, "cycles": 24, "on_policy": 0.5, "imitation_gain": 1.5}
    world = tiny.world(teachers, values)
    plain, seen = world.distiller.imitation, []

    def imitation(batch, positions, x, sigma, own, gains):
        seen.extend(
            (s >= LATE, g is None) for s, g in zip(sigma.tolist(), gains) if world.trainer.cycle >= 12
        )
        return plain(batch, positions, x, sigma, own, gains)

    monkeypatch.setattr(world.distiller, "imitation", imitation)
    list(world.trainer.run())
    assert all(none for early, none in seen if early)
    assert not all(none for _, none in seen)
