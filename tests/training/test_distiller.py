"""The objective on a model: which role sees what, at which price, and that the losses are the paper's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import mse_loss

from collectionlora.training import distiller as distiller_module
from collectionlora.training.config import distillation
from collectionlora.training.data import Batch, TeacherPath
from collectionlora.training.distiller import FAKE, STUDENT, Draws
from collectionlora.training.flow import anchored_times, unshift
from collectionlora.training.randomness import integers, noise_like, uniform

GENERAL = "general"


def batch_of(world, *effects, first=0):
    """A batch with samples of these effects, "general" for the general stream."""
    pick = {**world.lessons.effects, GENERAL: world.lessons.general}
    samples = [pick[name][i % 2] for i, name in enumerate(effects)]
    return Batch.of(samples, range(first, first + len(samples)))


def terms_of(world, batch, draws):
    with world.roles.use(STUDENT):
        return {term.name: term for term in world.distiller.student_terms(batch, draws)}


def stops_of(batch, draws, steps=8):
    return integers(draws.generators(batch, "rollout stop"), 0, steps)


# -- price ---------------------------------------------------------------------------------------------------


def student_price(effect: bool, stop: int, guidance: bool = True) -> int:
    """Forward-equivalents of the student update for one sample."""
    score = 3 if guidance else 2  # fake, conditional, unconditional
    return stop + 3 + score + ((3 + score + 3) if effect else 0)


def test_the_papers_schedule_costs_77_with_full_rollouts_and_less_by_what_partial_ones_save(tiny, teachers):
    paper = distillation({**tiny.SMALL, "fake_ratio": 5, "cycles": 3, "p_effect": 1.0}, "paper")
    world = tiny.world(teachers, paper)
    for cycle, _ in enumerate(world.trainer.run()):
        saved = 0
        for update in range(6):
            draws = Draws(paper.seed, cycle, "student" if update == 0 else f"fake {update - 1}")
            numbers = range(4 * update, 4 * update + 4)
            samples = world.lessons.draw(paper.seed, cycle, numbers, 1.0)
            saved += int((7 - stops_of(Batch.of(samples, numbers), draws)).sum())
        assert world.cost == 4 * 77 - saved
        world.calls.clear()


def test_the_papers_schedule_costs_77_if_every_rollout_is_full(tiny, teachers, monkeypatch):
    monkeypatch.setattr(
        distiller_module, "integers", lambda generators, low, high: torch.full((len(generators),), high - 1)
    )
    paper = distillation({**tiny.SMALL, "fake_ratio": 5, "cycles": 1, "p_effect": 1.0}, "paper")
    world = tiny.world(teachers, paper)
    next(world.trainer.run())
    assert world.cost == 4 * 77


def test_shared_rollouts_cost_at_most_30_a_cycle_over_both_streams(tiny, teachers):
    cycles, batch = 12, 8
    values = {"fake_ratio": 5, "cycles": cycles, "batch": batch, "micro_batch": batch}
    world = tiny.world(teachers, values)
    expected = 0
    for cycle, _ in enumerate(world.trainer.run()):
        samples = world.lessons.draw(0, cycle, range(batch), 0.5)
        stops = stops_of(Batch.of(samples, range(batch)), Draws(0, cycle, "student"))
        for sample, stop in zip(samples, stops.tolist()):
            expected += student_price(sample.effect is not None, stop) + 5 * 3
    assert world.cost == expected
    assert world.cost / (cycles * batch) <= 30


# -- roles and prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake_base", ["base", "teacher"])
def test_every_evaluation_has_its_role_and_its_prompt(fake_base, tiny, teachers):
    world = tiny.world(teachers, {"objective": {"fake_base": fake_base}})
    batch = batch_of(world, "neon", GENERAL, "frost")
    draws = Draws(0, 0, "student")
    prompts = ("student:neon", "general:1", "student:frost")
    taught = ("teacher:neon", "general:1", "teacher:frost")

    terms = {}
    with world.roles.use(STUDENT):
        for term in world.distiller.student_terms(batch, draws):
            terms[term.name] = (list(world.calls), term)
            world.calls.clear()
    depth = int(stops_of(batch, draws).max())
    call = tiny.Call

    def fake_call(teachers, step, graph):
        if fake_base == "base":
            return call(FAKE, prompts[::step], graph)
        return call(f"{teachers} + {FAKE}", taught[::step], graph)

    bs, ts, fm = (terms[name][0] for name in ("bs", "ts", "fm"))
    assert len(bs) == depth + 4
    assert all(c.role == STUDENT and not c.graph and set(c.prompts) <= set(prompts) for c in bs[:depth])
    mixed = "teachers neon, base, frost"
    assert bs[depth:] == [
        call(STUDENT, prompts, True),
        fake_call(mixed, 1, False),
        call(mixed, taught, False),
        call(mixed, ("empty",) * 3, False),
    ]
    some = "teachers neon, frost"
    assert ts == [
        call(STUDENT, prompts[::2], True),
        fake_call(some, 2, False),
        call(some, taught[::2], False),
        call(some, ("empty",) * 2, False),
    ]
    assert fm == [call(STUDENT, prompts[::2], True)]

    world.distiller.fake_term(batch, terms["bs"][1].samples, draws)
    assert world.calls == [fake_call(mixed, 1, True)]
    assert world.roles.active == "base"


def test_the_general_stream_is_scored_by_the_base_alone_and_has_no_seeded_terms(tiny, teachers):
    world = tiny.world(teachers)
    batch = batch_of(world, GENERAL, GENERAL)
    assert list(terms_of(world, batch, Draws(0, 0, "student"))) == ["bs"]
    assert {call.role for call in world.calls} == {STUDENT, FAKE, "base"}
    assert world.bank.stats.loads == 0


def test_a_sample_without_teacher_image_has_only_the_rollout_term(tiny, teachers):
    world = tiny.world(teachers, lessons_=tiny.lessons(targets=False))
    assert list(terms_of(world, batch_of(world, "neon", "frost"), Draws(0, 0, "student"))) == ["bs"]


def test_without_guidance_the_unconditional_is_not_evaluated(tiny, teachers):
    world = tiny.world(teachers, {"objective": {"guidance": 0.0}})
    terms_of(world, batch_of(world, "neon", GENERAL), Draws(0, 0, "student"))
    assert not any("empty" in call.prompts for call in world.calls)


@pytest.mark.parametrize("off", ["bs", "ts", "fm"])
def test_a_term_switched_off_costs_nothing_and_leaves_the_others_as_they_are(off, tiny, teachers):
    # A single shift and no rollout term would move the time of "fm"; nothing else may depend on another term.
    found, cost = {}, {}
    for weight in (1.0, 0.0):
        world = tiny.world(teachers, {"objective": {f"{off}_weight": weight}}, stir=True)
        batch, draws = batch_of(world, "neon", GENERAL, "frost"), Draws(0, 0, "student")
        terms = terms_of(world, batch, draws)
        found[weight] = {name: term.losses for name, term in terms.items()}
        cost[weight] = world.cost
    assert list(found[0.0]) == [name for name in ("bs", "ts", "fm") if name != off]
    for name, losses in found[0.0].items():
        if (off, name) != ("bs", "fm"):  # its time lies above that of the rollout term, where there is one
            assert torch.equal(losses, found[1.0][name])
    price = {"bs": int(stops_of(batch, draws).sum()) + 3 * 6, "ts": 2 * 6, "fm": 2 * 3}
    assert cost[1.0] - cost[0.0] == price[off]


def test_the_fake_score_rests_where_no_distribution_is_matched(tiny, teachers):
    world = tiny.world(teachers, {"objective": {"bs_weight": 0.0, "ts_weight": 0.0}, "cycles": 1})
    (record,) = world.trainer.run()
    assert list(record.values) == ["fm"]
    assert {call.role for call in world.calls} == {STUDENT}


def test_gradients_reach_only_the_adapter_that_learns(tiny, teachers):
    world = tiny.world(teachers, stir=True)
    batch, draws = batch_of(world, "neon", GENERAL, "frost"), Draws(0, 0, "student")
    before = {name: parameter.clone() for name, parameter in world.net.named_parameters()}
    student, fake = world.trainer.student, world.trainer.trained["fake"]
    with world.roles.use(STUDENT):
        for term in world.distiller.student_terms(batch, draws):
            if term.samples is not None:
                samples = term.samples
            for parameter in student.parameters():
                parameter.grad = None
            term.losses.sum().backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in fake.parameters())
    student.zero_grad()
    with world.distiller.use(FAKE, batch):
        world.distiller.fake_term(batch, samples, draws).losses.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fake.parameters())
    assert all(parameter.grad is None for parameter in student.parameters())
    for name, parameter in world.net.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


# -- the losses ----------------------------------------------------------------------------------------------


class Plain:
    """The paper's formulas once more, one sample at a time, in plain words and float64."""

    def __init__(self, world, batch, draws, i):
        self.net, self.objective, self.world = world.net, world.trainer.config.objective, world
        self.effect, self.source = batch.effects[i], batch.source[i : i + 1]
        self.prompts = {
            "student": batch.student[i : i + 1],
            "teacher": batch.teacher[i : i + 1],
            "empty": batch.empty[i : i + 1],
        }
        self.target, self.batch, self.draws, self.i = batch.targets[i], batch, draws, i

    def generator(self, purpose):
        return self.draws.generators(self.batch, purpose, [self.i])

    def noise(self, purpose):
        return noise_like(self.source, self.generator(purpose))

    def velocity(self, role, x, sigma, prompt):
        text = self.prompts[prompt]
        with self.world.roles.use(role):
            return self.net(x, torch.full((1,), sigma, dtype=x.dtype), text, self.source)

    def taught(self, x, sigma, prompt, plus=None):
        names = [] if self.effect is None else [self.effect]
        stack = self.world.bank.stack(names)
        with self.world.roles.use_teachers(stack, torch.tensor([0 if names else -1]), plus):
            return self.net(x, torch.full((1,), sigma, dtype=x.dtype), self.prompts[prompt], self.source)

    def x0(self, role, x, sigma, prompt="student"):
        return x - sigma * self.velocity(role, x, sigma, prompt)

    def fake(self, x, sigma):
        if self.objective.fake_base == "base":
            return self.velocity("fake", x, sigma, "student")
        return self.taught(x, sigma, "teacher", "fake")

    def real(self, x, sigma):
        cond, uncond = (x - sigma * self.taught(x, sigma, prompt) for prompt in ("teacher", "empty"))
        return cond + self.objective.guidance * (cond - uncond)

    def matching(self, x0, name, low):
        u = float(uniform(self.generator(f"{name} time"), low, 1.0))
        t = 3 * u / (1 + 2 * u)
        x = (1 - t) * x0.detach() + t * self.noise(f"{name} noise")
        fake, real = x - t * self.fake(x, t), self.real(x, t)
        g = (fake - real) / (x0 - real).abs().mean()
        return 0.5 * mse_loss(x0, (x0 - g).detach()), t

    def bs(self):
        sigmas = [1, 0.95454545, 0.9, 0.83333333, 0.75, 0.642857142, 0.5, 0.3, 0]
        stop = int(integers(self.generator("rollout stop"), 0, 8))
        x, (again,) = self.noise("rollout start"), self.generator("rollout noise")
        for now, then in pairwise(sigmas[: stop + 1]):
            fresh = torch.randn(x.shape[1:], generator=again).to(x.dtype)
            x = (1 - then) * self.x0("student", x, now).detach() + then * fresh
        return self.matching(self.x0("student", x, sigmas[stop]), "bs", 0.0)

    def ts(self):
        sigma = [0.83333333, 0.75, 0.642857142, 0.5, 0.3][int(integers(self.generator("ts step"), 0, 5))]
        x = (1 - sigma) * self.target + sigma * self.noise("ts start")
        return self.matching(self.x0("student", x, sigma), "ts", 0.5)[0]

    def fm(self, above):
        u = float(uniform(self.generator("fm time"), above, 1.0))
        t = 3 * u / (1 + 2 * u)
        noise = self.noise("fm noise")
        v = self.velocity("student", (1 - t) * self.target + t * noise, t, "student")
        return mse_loss(v, noise - self.target)

    def path(self, path):
        k = int(integers(self.generator("path step"), 0, len(path.sigmas)))
        sigma, x = float(path.sigmas[k]), path.states[k : k + 1].double()
        return mse_loss(self.velocity("student", x, sigma, "student"), (x - self.target) / sigma)


@pytest.mark.parametrize("fake_base", ["base", "teacher"])
def test_the_losses_are_the_papers(fake_base, tiny, teachers):
    world = tiny.world(teachers, {"objective": {"fake_base": fake_base}}, dtype=torch.float64, stir=True)
    draws = Draws(7, 3, "student")
    batch = batch_of(world, "neon", GENERAL, "frost", "neon", first=40)
    terms = terms_of(world, batch, draws)
    assert terms["bs"].positions == (0, 1, 2, 3)
    assert terms["ts"].positions == terms["fm"].positions == (0, 2, 3)
    for i in range(4):
        plain = Plain(world, batch, draws, i)
        bs, time = plain.bs()
        expected = {"bs": bs}
        if batch.effects[i] is not None:
            expected.update(ts=plain.ts(), fm=plain.fm(time))
        for name, loss in expected.items():
            ours = terms[name].losses[terms[name].positions.index(i)]
            # times and sigmas are float32 on the way
            torch.testing.assert_close(ours.double(), loss.double()[()], rtol=2e-5, atol=1e-6)


def test_where_the_teachers_path_is_known_the_anchor_is_on_it(tiny, teachers):
    draws = Draws(3, 1, "student")
    path = TeacherPath(torch.tensor([1.0, 0.6, 0.2]), torch.randn(3, *tiny.LATENT).half())
    for anchor, on_path in (("path", [1]), ("image", [])):
        world = tiny.world(teachers, {"objective": {"anchor": anchor}}, dtype=torch.float64, stir=True)
        frost, neon = (world.lessons.effects[name][0] for name in ("frost", "neon"))
        samples = [frost, dataclasses.replace(neon, path=path), world.lessons.general[0]]
        batch = Batch.of(samples, range(3))
        with world.roles.use(STUDENT):
            terms = list(world.distiller.student_terms(batch, draws))
        found = {i: one for t in terms if t.name == "fm" for i, one in zip(t.positions, t.losses)}
        assert sorted(found) == [0, 1]
        for i, loss in found.items():
            plain = Plain(world, batch, draws, i)
            expected = plain.path(path) if i in on_path else plain.fm(plain.bs()[1])
            torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("fake_base", ["base", "teacher"])
def test_the_fake_score_regresses_on_the_students_samples(fake_base, tiny, teachers):
    world = tiny.world(teachers, {"objective": {"fake_base": fake_base}}, dtype=torch.float64, stir=True)
    batch, draws = batch_of(world, "neon", GENERAL), Draws(0, 0, "fake 1")
    x0 = world.distiller.sample(batch, draws).detach()
    term = world.distiller.fake_term(batch, x0, draws)
    for i in range(2):
        plain = Plain(world, batch, draws, i)
        u = float(uniform(plain.generator("fake time")))
        t = 3 * u / (1 + 2 * u)
        noise = plain.noise("fake noise")
        v = plain.fake((1 - t) * x0[i] + t * noise, t)
        torch.testing.assert_close(term.losses[i], mse_loss(v, noise - x0[i : i + 1]), rtol=2e-5, atol=1e-6)


def test_no_two_draws_of_an_update_share_their_randomness(tiny, teachers, monkeypatch):
    drawn: Counter[tuple[object, ...]] = Counter()
    plain = distiller_module.generators

    def counted(seed, cycle, samples, purpose):
        drawn.update((seed, cycle, sample, purpose) for sample in samples)
        return plain(seed, cycle, samples, purpose)

    monkeypatch.setattr(distiller_module, "generators", counted)
    for share in (True, False):
        drawn.clear()
        world = tiny.world(teachers, {"share_rollouts": share, "cycles": 2, "micro_batch": 2})
        list(world.trainer.run())
        assert set(drawn.values()) == {1}


def test_times_are_drawn_where_the_paper_says(tiny, teachers, monkeypatch):
    seen: dict[str, list[float]] = {"matching": [], "fm": [], "bs": []}
    world = tiny.world(teachers, {"objective": {"double_shift": False}})
    matching = world.distiller._matching

    def noted(name, batch, positions, x0, times, draws):
        seen["bs" if name == "bs" else "matching"] += times.tolist()
        return matching(name, batch, positions, x0, times, draws)

    def anchored(generators, above, s, double):
        times = anchored_times(generators, above, s, double)
        assert (times >= above).all()
        seen["fm"] += times.tolist()
        return times

    monkeypatch.setattr(world.distiller, "_matching", noted)
    monkeypatch.setattr(distiller_module, "anchored_times", anchored)
    batch = batch_of(world, *["neon", "frost"] * 32)
    terms_of(world, batch, Draws(0, 0, "student"))
    assert 0.75 <= min(seen["matching"]) < 0.78
    assert max(seen["matching"]) <= 1
    plain = unshift(torch.tensor(seen["bs"]))
    assert abs(float(plain.mean()) - 0.5) < 0.1
    assert float(plain.min()) < 0.1
    assert float(plain.max()) > 0.9
    assert len(seen["fm"]) == 64
