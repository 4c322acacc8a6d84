"""The paper's schedule of evaluations, as its released code runs it: the baseline of `make bench`.

The mathematics and the random numbers are the product's own, so that a student update on the same samples is
the same; what differs is what is evaluated for it. Text and latents are cached in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..training.data import Batch, picked
from ..training.distiller import Distiller, Draws, Term
from ..training.flow import consistency
from ..training.randomness import integers, noise_like


class PaperDistiller(Distiller):
    """Whole rollouts, the chosen step evaluated again, and all three losses in the general stream too.

    With `share_rollouts` off and 5 updates of the fake score a cycle costs 77 forward-equivalents a sample:
    7 + 3 for L_DMD_BS and 3 to score it, 3 + 3 for L_DMD_TS, 3 for L_TA-FM, 5 (7 + 1 + 3) for the fake score.
    """

    def sample(self, batch: Batch, draws: Draws) -> Tensor:
        """As the product's, but all samples run to the last step and are then evaluated where they stop."""
        sigmas = self.objective.sigmas
        x = noise_like(batch.source, draws.generators(batch, "rollout start"))
        stops = integers(draws.generators(batch, "rollout stop"), 0, len(sigmas) - 1)
        chosen = x.clone()
        with torch.no_grad(), self.roles.use(self.sampler):
            states = consistency(
                lambda x, sigma: self.velocity(x, sigma, batch.student, batch.source),
                x,
                sigmas[:-1],
                draws.generators(batch, "rollout noise"),
            )
            for done, state in enumerate(states, start=1):
                here = (stops == done).to(x.device)
                chosen[here] = state[here]
        return self._student_x0(batch, range(len(batch)), chosen, torch.tensor(sigmas)[stops])

    def student_terms(self, batch: Batch, draws: Draws) -> Iterator[Term]:
        """The product's terms; then the general stream's TS and TA-FM on zeros, multiplied by 0."""
        yield from super().student_terms(batch, draws)
        idle = [i for i, target in enumerate(batch.targets) if target is None]
        if idle:
            general = replace(
                batch,
                numbers=tuple(batch.numbers[i] for i in idle),
                effects=tuple(batch.effects[i] for i in idle),
                targets=tuple(torch.zeros_like(batch.source[i]) for i in idle),
                paths=(None,) * len(idle),
                source=batch.source[idle],
                **{name: picked(getattr(batch, name), idle) for name in ("student", "teacher", "empty")},
            )
            for term in (
                self._teacher_seeded(general, draws),
                self.image_anchored(general, range(len(idle)), draws, torch.zeros(len(idle))),
            ):
                yield replace(term, losses=0 * term.losses)
