"""A question to the bench: should the fake score see the x0s of all steps that a rollout has visited?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..training.data import Batch
from ..training.distiller import Distiller, Draws, Term
from ..training.flow import rollout
from ..training.randomness import integers, noise_like


class VisitedDistiller(Distiller):
    """The first update of the fake score learns from the x0s that the student is scored on, as the product's.

    Each further one learns from x0s that the same rollouts passed on their way, for each sample of a random
    step of its rollout: other pictures of the same student for no evaluation more.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.visited: dict[int, list[Tensor]] = {}
        """Sample number -> x0 (C,h,w) of each step of its rollout, the last one that it is scored on."""

    def sample(self, batch: Batch, draws: Draws) -> Tensor:
        """As the product's; keeps what the rollout passed."""
        sigmas = self.objective.sigmas
        stops = integers(draws.generators(batch, "rollout stop"), 0, len(sigmas) - 1)

        def velocity(x: Tensor, sigma: Tensor, active: Sequence[int]) -> Tensor:
            v = self._velocity(batch, active, batch.student, x, sigma)
            for i, x0 in zip(active, x - sigma.view(-1, 1, 1, 1) * v):
                self.visited[batch.numbers[i]].append(x0)
            return v

        for number in batch.numbers:
            self.visited[number] = []
        with self.roles.use(self.sampler):
            noise = noise_like(batch.source, draws.generators(batch, "rollout start"))
            x = rollout(velocity, noise, sigmas, stops, draws.generators(batch, "rollout noise"))
        x0 = self._student_x0(batch, range(len(batch)), x, torch.tensor(sigmas)[stops])
        for number, own in zip(batch.numbers, x0.detach()):
            self.visited[number].append(own)
        return x0

    def fake_term(self, batch: Batch, x0: Tensor, draws: Draws) -> Term:
        """As the product's, on x0s of other steps after the first update."""
        if draws.update != "fake 0":
            choices = [self.visited[number] for number in batch.numbers]
            picks = [
                int(torch.randint(len(choice), (), generator=one))
                for choice, one in zip(choices, draws.generators(batch, "visited step"))
            ]
            x0 = torch.stack([choice[pick] for choice, pick in zip(choices, picks)])
        return super().fake_term(batch, x0, draws)
