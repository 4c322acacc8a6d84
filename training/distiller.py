"""The objective on a model: which role evaluates what, at which time, from which noise (paper section 3).

The distiller owns neither optimizers nor gradients nor devices: it gives loss vectors and the trainer runs
backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import TeacherBank
from .config import Objective
from .data import Batch, picked
from .flow import (
    add_noise,
    anchored_times,
    rollout,
    uniform_shifted,
    velocity_towards,
    x0_from_velocity,
)
from .host import Texts
from .losses import dmd_direction, dmd_loss, edit_shares, flow_matching_loss, guided, velocity_loss
from .randomness import generator, generators, integers, noise_like, uniform
from .roles import BASE, PLUS, Roles

STUDENT, FAKE = "student", "fake"
BELOW = "below"
"""A frozen adapter that is on together with the student wherever it is sampled: of few-step sampling alone
or, where that is what learns, the rest of a collection."""

Velocity = Callable[[Tensor, Tensor, Texts, Tensor], Tensor]
"""`velocity(x (B,C,h,w), sigma (B,), text, source (B,C,h,w)) -> (B,C,h,w)`: the host's model, whichever role
is active."""


@dataclass(frozen=True, eq=False)
class Term:
    """One term of the loss: its name, the role it was computed in, the batch positions it covers, and one
    loss for each of them."""

    name: str
    role: str
    positions: tuple[int, ...]
    losses: Tensor
    samples: Tensor | None = None
    """Of L_DMD_BS: the student's x0 (B,C,h,w) without gradient, which the fake score can learn from."""
    edits: tuple[tuple[int, ...], Tensor] | None = None
    """Of imitation with gains: n positions, and which share of its teacher's edit the student makes (n,)."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one update: each is named by (seed, cycle, update, sample, purpose)."""

    seed: int
    cycle: int
    update: str
    """"student", or "fake 0", "fake 1", ..."""

    def generators(
        self, batch: Batch, purpose: str, positions: Sequence[int] | None = None
    ) -> list[torch.Generator]:
        """One generator for each sample of the batch, or for those at `positions`."""
        numbers = batch.numbers if positions is None else [batch.numbers[i] for i in positions]
        return generators(self.seed, self.cycle, numbers, f"{self.update}/{purpose}")


class Distiller:
    """L = L_TA-FM + L_DMD_TS + L_DMD_BS for the student, flow matching for the fake score.

    Args:
        velocity: the host's model; `roles` decides with which adapter it runs.
        roles: attached roles holding adapters named "student" and "fake"; and "below", if the student is
            to be sampled on top of one. It is then not the student's to learn.
        bank: the teachers by effect name.
    """

    def __init__(
        self,
        velocity: Velocity,
        roles: Roles,
        bank: TeacherBank,
        objective: Objective,
    ) -> None:
        self.velocity, self.roles, self.bank, self.objective = velocity, roles, bank, objective
        self._below = BELOW if BELOW in roles.adapters else BASE
        self.sampler = STUDENT if self._below == BASE else f"{STUDENT}{PLUS}{BELOW}"

    def student_terms(self, batch: Batch, draws: Draws) -> Iterator[Term]:
        """The student's terms "bs", "ts", "fm", one at a time, so that one graph is alive at a time.

        Run backward inside `use(term.role, batch)` before asking for the next. Terms with weight 0 are
        neither computed nor yielded. A sample without teacher image has no TS and no TA-FM term.
        """
        o = self.objective
        times = torch.zeros(len(batch))
        if o.bs_weight:
            x0 = self.sample(batch, draws)
            times = uniform_shifted(draws.generators(batch, "bs time"), s=o.shift)
            yield self._matching("bs", batch, range(len(batch)), x0, times, draws)
        if o.ts_weight and batch.seeded():
            yield self._teacher_seeded(batch, draws)
        if o.fm_weight:
            known = [i for i, path in enumerate(batch.paths) if path is not None and o.anchor == "path"]
            if known:
                yield self.path_anchored(batch, known, draws)
            other = [i for i in batch.seeded() if i not in known]
            if other:
                yield self.image_anchored(batch, other, draws, times, self.sampler)

    def sample(self, batch: Batch, draws: Draws) -> Tensor:
        """Backward simulation: the student's own input at a random step of its schedule, and its x0 there.

        Gradients flow into the last evaluation only (if gradients are enabled), the rollout before has none.
        """
        o = self.objective
        # one draw for the whole update, so that it does not matter which samples share a batch
        half = uniform([generator(draws.seed, draws.cycle, f"{draws.update}/rollout half")]) < o.half_share
        sigmas = o.half_sigmas if half else o.sigmas
        noise = noise_like(batch.source, draws.generators(batch, "rollout start"))
        stops = integers(draws.generators(batch, "rollout stop"), 0, len(sigmas) - 1)
        with self.roles.use(self.sampler):
            x = rollout(
                lambda x, sigma, active: self._velocity(batch, active, batch.student, x, sigma),
                noise,
                sigmas,
                stops,
                draws.generators(batch, "rollout noise"),
            )
        return self._student_x0(batch, range(len(batch)), x, torch.tensor(sigmas)[stops])

    def image_anchored(
        self, batch: Batch, positions: Sequence[int], draws: Draws, times: Tensor, role: str = STUDENT
    ) -> Term:
        """L_TA-FM as published: regress the velocity towards the teacher's image, from fresh noise, above
        `times` (B,) of the BS term. All samples at `positions` have a teacher image.
        """
        o = self.objective
        target = _targets(batch, positions)
        sigma = anchored_times(
            draws.generators(batch, "fm time", positions), times[positions], o.shift, o.double_shift
        ).to(target.device)
        noise = noise_like(target, draws.generators(batch, "fm noise", positions))
        with self.roles.use(role):
            v = self._velocity(batch, positions, batch.student, add_noise(target, noise, sigma), sigma)
        return Term("fm", role, tuple(positions), flow_matching_loss(v, target, noise))

    def path_anchored(self, batch: Batch, positions: Sequence[int], draws: Draws) -> Term:
        """L_TA-FM beyond the paper: from where the teacher passed, at a step of the schedule, straight to its
        image. From fresh noise a regression learns the mean of all images that the noise may lead to, which
        is a blur; here each noise leads to one. All samples at `positions` have a path.
        """
        target = _targets(batch, positions)
        paths = [path for i, path in enumerate(batch.paths) if path is not None and i in positions]
        steps = integers(draws.generators(batch, "path step", positions), 0, len(paths[0].sigmas)).tolist()
        sigma = torch.stack([path.sigmas[k] for path, k in zip(paths, steps)]).to(target.device)
        x = torch.stack([path.states[k] for path, k in zip(paths, steps)]).to(target)
        with self.roles.use(self.sampler):
            v = self._velocity(batch, positions, batch.student, x, sigma)
        return Term(
            "fm", self.sampler, tuple(positions), velocity_loss(v, velocity_towards(target, x, sigma))
        )

    def imitation(
        self,
        batch: Batch,
        positions: Sequence[int],
        x: Tensor,
        sigma: Tensor,
        own: bool,
        gains: Sequence[float | None] = (),
    ) -> tuple[Term, Tensor]:
        """Beyond the paper, before matching: regress the velocity on the teacher's own (general stream: the
        base's) where new ways from noise have come to (:mod:`.ways`). Flow matching on the few images that a
        teacher has made learns these by heart; no way comes twice.

        Teachers' ways are guided, and so is what is learnt there, unless a few-step LoRA is to be added to
        the student as to a teacher: that guides by itself. On the student's `own` ways it is below both.
        Without teachers' ways beside them these blur (docs/experiments.md).

        Args:
            x, sigma: states (n,C,h,w) and times (n,) of the samples at `positions`.
            gains: for each of these, what its edit is multiplied by: that in which the teacher's velocity
                differs from the one without teacher and student. None leaves it, at no cost.

        Returns the term, and the x0 (n,C,h,w) without gradient that the ways lead on to from there.
        """
        role, below = (self.sampler, self._below) if own else (STUDENT, BASE)
        with torch.no_grad():
            cond, real = self._unguided_and_guided(batch, positions, x, sigma, below)
            target = real if self._below == BASE else cond
            asked = {i: gain for i, gain in enumerate(gains) if gain is not None}

            def of_these(values: Tensor) -> Tensor:
                return torch.stack([values[i] for i in asked])

            if asked:
                chosen = tuple(positions[i] for i in asked)
                with self.roles.use(below):
                    bare = self._velocity(batch, chosen, batch.student, of_these(x), of_these(sigma))
                edits = of_these(target) - bare
                raised = {i: b + g * e for (i, g), b, e in zip(asked.items(), bare, edits, strict=True)}
                target = torch.stack([raised.get(i, one) for i, one in enumerate(target)])
        with self.roles.use(role):
            v = self._velocity(batch, positions, batch.student, x, sigma)
        x0 = x0_from_velocity(x, v.detach() if own else real, sigma)
        name = "on_policy" if own else "imitation"
        made = (chosen, edit_shares(of_these(v.detach()) - bare, edits)) if asked else None
        return Term(name, role, tuple(positions), velocity_loss(v, target), edits=made), x0

    def fake_term(self, batch: Batch, x0: Tensor, draws: Draws) -> Term:
        """The fake score's loss on the student's samples `x0` (B,C,h,w).

        Run backward inside `use(term.role, batch)`.
        """
        sigma = uniform_shifted(draws.generators(batch, "fake time"), s=self.objective.shift).to(x0.device)
        noise = noise_like(x0, draws.generators(batch, "fake noise"))
        everyone = range(len(batch))
        with self.use(FAKE, batch):
            v = self._velocity(batch, everyone, self._fake_text(batch), add_noise(x0, noise, sigma), sigma)
        return Term("fake", FAKE, tuple(everyone), flow_matching_loss(v, x0, noise))

    def use(
        self, role: str, batch: Batch, positions: Sequence[int] | None = None
    ) -> AbstractContextManager[None]:
        """Be the student or the fake score for the samples at `positions`, by default the whole batch."""
        if role != FAKE or self.objective.fake_base == "base":
            return self.roles.use(role)
        return self._teachers(batch, range(len(batch)) if positions is None else positions, role)

    def _fake_text(self, batch: Batch) -> Texts:
        return batch.student if self.objective.fake_base == "base" else batch.teacher

    def _teacher_seeded(self, batch: Batch, draws: Draws) -> Term:
        """L_DMD_TS: noise the teacher's image, take one student step, match distributions at high noise."""
        o = self.objective
        positions = batch.seeded()
        target = _targets(batch, positions)
        steps = integers(draws.generators(batch, "ts step", positions), 0, len(o.ts_sigmas))
        sigma = torch.tensor(o.ts_sigmas)[steps]
        noise = noise_like(target, draws.generators(batch, "ts start", positions))
        x0 = self._student_x0(batch, positions, add_noise(target, noise, sigma), sigma)
        times = uniform_shifted(draws.generators(batch, "ts time", positions), o.ts_low, 1.0, o.shift)
        return self._matching("ts", batch, positions, x0, times, draws)

    def _matching(
        self, name: str, batch: Batch, positions: Sequence[int], x0: Tensor, times: Tensor, draws: Draws
    ) -> Term:
        """Distribution matching at `times`: noise x0, compare what fake and real score make of it."""
        sigma = times.to(x0.device)
        with torch.no_grad():
            noise = noise_like(x0, draws.generators(batch, f"{name} noise", positions))
            x = add_noise(x0, noise, sigma)
            with self.use(FAKE, batch, positions):
                v = self._velocity(batch, positions, self._fake_text(batch), x, sigma)
                fake = x0_from_velocity(x, v, sigma)
            real = x0_from_velocity(x, self._real_velocity(batch, positions, x, sigma), sigma)
            direction = dmd_direction(x0, fake, real, self.objective.floor)
        samples = x0.detach() if name == "bs" else None
        return Term(name, self.sampler, tuple(positions), dmd_loss(x0, direction), samples)

    def _real_velocity(self, batch: Batch, positions: Sequence[int], x: Tensor, sigma: Tensor) -> Tensor:
        """Each sample's own teacher (general stream: the base) with its own prompt, guided."""
        return self._unguided_and_guided(batch, positions, x, sigma, BASE)[1]

    def _unguided_and_guided(
        self, batch: Batch, positions: Sequence[int], x: Tensor, sigma: Tensor, below: str
    ) -> tuple[Tensor, Tensor]:
        """The same without guidance too. On top of a few-step LoRA `below` there is none: such a LoRA is made
        to be sampled without.

        Two forwards and not one batch of twice the size: a larger micro_batch does as much for the speed.
        """
        with self._teachers(batch, positions, below):
            cond = self._velocity(batch, positions, batch.teacher, x, sigma)
            if not self.objective.guidance or below != BASE:
                return cond, cond
            uncond = self._velocity(batch, positions, batch.empty, x, sigma)
            return cond, guided(cond, uncond, self.objective.guidance)

    def _teachers(
        self, batch: Batch, positions: Sequence[int], plus: str = BASE
    ) -> AbstractContextManager[None]:
        names = [batch.effects[i] for i in positions]
        if all(name is None for name in names):
            return self.roles.use(plus)
        # All of the batch's teachers, so that the terms of a batch share one stack.
        stack = self.bank.stack(batch.teachers())
        return self.roles.use_teachers(stack, stack.index(names), None if plus == BASE else plus)

    def _student_x0(self, batch: Batch, positions: Sequence[int], x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.to(x.device)
        with self.roles.use(self.sampler):
            v = self._velocity(batch, positions, batch.student, x, sigma)
        return x0_from_velocity(x, v, sigma)

    def _velocity(
        self, batch: Batch, positions: Sequence[int], texts: Texts, x: Tensor, sigma: Tensor
    ) -> Tensor:
        source = batch.source if len(x) == len(batch) else torch.stack([batch.source[i] for i in positions])
        return self.roles.guard(self.velocity(x, sigma, picked(texts, positions), source))


def _targets(batch: Batch, positions: Sequence[int]) -> Tensor:
    """(len(positions),C,h,w)"""
    found = [batch.targets[i] for i in positions]
    return torch.stack([target for target in found if target is not None])
