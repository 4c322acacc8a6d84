"""Ways from noise along which the student imitates: each visit takes one a step further.

The teacher's velocity at a stop is what the student regresses on there, and leads on to the next: each
evaluation serves twice. Other ways are visited in between, so that updates that follow each other do not
learn the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .config import Distillation
from .data import Lessons, Sample
from .flow import add_noise, shift, velocity_towards
from .randomness import generator, integers, noise_like, uniform

APART = 8
"""Cycles from one visit of a way to the next."""
STEPS = 5
"""Of a teacher's way, in equal lengths before the shift; it ends within the last of them."""


@dataclass(frozen=True, eq=False)
class Way:
    """Where a sample is on its way. What is not `step` or `x` follows from the run, `start` and `number`."""

    seed: int
    start: int
    """The cycle in which it began."""
    number: int
    """Of its sample in that cycle's batch, and in those that visit it."""
    sample: Sample
    own: bool
    """The student's own, by the few-step sampler; else its teacher's, by Euler's."""
    sigmas: tuple[float, ...]
    """Its stops, falling from 1."""
    step: int
    x: Tensor
    """(C,h,w) at `sigmas[step]`, on the CPU."""

    @classmethod
    def begin(cls, lessons: Lessons, config: Distillation, start: int, number: int) -> Way:
        """At noise."""

        def named(purpose: str) -> list[torch.Generator]:
            return [generator(config.seed, start, number, purpose)]

        objective = config.objective
        (sample,) = lessons.draw(config.seed, start, [number], config.p_effect)
        own = uniform(named("way kind")).item() < config.on_policy
        if own:
            halved = integers(named("way steps"), 0, 2).item()
            sigmas = (objective.half_sigmas if halved else objective.sigmas)[:-1]
        else:
            end = uniform(named("way end")).item()
            sigmas = (1.0, *(shift(1 - (k + end) / STEPS, objective.shift) for k in range(STEPS)))
        if start - config.warm_cycles < APART:
            # the first ones are cut short, or all ways of a batch would stop at the same times for ever
            sigmas = sigmas[: 1 + int(integers(named("way cut"), 0, len(sigmas)))]
        (x,) = noise_like(sample.source[None], named("way start"))
        return cls(config.seed, start, number, sample, own, sigmas, 0, x)

    @property
    def sigma(self) -> float:
        """Where it is."""
        return self.sigmas[self.step]

    def onward(self, x0: Tensor, cycle: int) -> Tensor | None:
        """x at the next stop, from the x0 (C,h,w) predicted at this one in `cycle`; None at the end."""
        if self.step + 1 == len(self.sigmas):
            return None
        now, then = (torch.tensor([sigma]) for sigma in self.sigmas[self.step : self.step + 2])
        x, x0 = self.x[None], x0.to(self.x)[None]
        if self.own:
            noise = noise_like(x0, [generator(self.seed, cycle, self.number, "way noise")])
            return add_noise(x0, noise, then)[0]
        return (x + (then - now) * velocity_towards(x0, x, now))[0]


@dataclass
class Ways:
    """The unfinished ways of a run, `APART` batches of them at most."""

    lessons: Lessons
    config: Distillation
    held: dict[int, dict[int, Way]] = field(default_factory=dict)
    """By cycle modulo `APART`, then by number."""

    def visited(self, cycle: int) -> list[Way]:
        """A whole batch: those left `APART` cycles ago, and new ones in place of those that ended."""
        held = self.held.get(cycle % APART, {})
        return [held.get(number) or self._begun(cycle, number) for number in range(self.config.batch)]

    def leave(self, cycle: int, ways: Sequence[Way], moved: Mapping[int, Tensor | None]) -> None:
        """Keep the ways visited in `cycle` where they have moved to, by number; None is the end of one."""
        self.held[cycle % APART] = {
            way.number: replace(way, step=way.step + 1, x=x)
            for way in ways
            if (x := moved[way.number]) is not None
        }

    def state(self) -> dict[int, dict[int, dict[str, Any]]]:
        """What a checkpoint has to hold."""
        return {
            group: {
                number: {"start": way.start, "step": way.step, "x": way.x} for number, way in held.items()
            }
            for group, held in self.held.items()
        }

    def restore(self, state: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> None:
        """Be as when `state` was taken."""
        self.held = {
            group: {
                number: replace(self._begun(kept["start"], number), step=kept["step"], x=kept["x"])
                for number, kept in held.items()
            }
            for group, held in state.items()
        }

    def _begun(self, start: int, number: int) -> Way:
        return Way.begin(self.lessons, self.config, start, number)
