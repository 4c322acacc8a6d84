"""How often a configuration evaluates the model, in the project's own counting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import Distillation, Objective
from ..flow import unshift
from ..gains import LATE
from ..ways import STEPS


@dataclass(frozen=True)
class Evaluations:
    """Means for one sample of one cycle, over both streams and all steps at which a rollout may stop."""

    adapter: float = 0.0
    """Without gradient, by student or fake score."""
    teacher: float = 0.0
    """Without gradient, by a teacher or, in the general stream, the base."""
    gradient: float = 0.0
    """With gradient, by student or fake score."""

    def __add__(self, other: Evaluations) -> Evaluations:
        return Evaluations(
            self.adapter + other.adapter, self.teacher + other.teacher, self.gradient + other.gradient
        )

    def __mul__(self, times: float) -> Evaluations:
        return Evaluations(self.adapter * times, self.teacher * times, self.gradient * times)

    @property
    def equivalents(self) -> float:
        """Forward-equivalents: an evaluation with gradient counts three, for the blocks are computed again
        and the frozen base needs the gradients of activations alone."""
        return self.adapter + self.teacher + 3 * self.gradient


Parts = Iterator[tuple[Evaluations, float]]
"""Parts of a cycle with the samples, on average, that are evaluated at a time of a micro-batch."""


def total(parts: Parts) -> Evaluations:
    """All evaluations of a sample in a cycle."""
    return sum((part for part, _ in parts), Evaluations())


def cycle_evaluations(config: Distillation, p_effect: float, micro_batch: int = 1) -> Parts:
    """A cycle after the warm ones: the student's update and those of the fake score.

    Args:
        p_effect: probability of the effect stream; 1 where there are no general samples.
    """
    o = config.objective
    taught = _at_a_time(micro_batch, p_effect)
    one = Evaluations(gradient=1)
    scored = one + Evaluations(adapter=1, teacher=2 if o.guidance else 1)
    if o.bs_weight:
        yield from _rollouts(o, micro_batch)
        yield scored, micro_batch
    if o.ts_weight:
        yield scored * p_effect, taught
    if o.fm_weight:
        yield one * p_effect, taught
    if o.bs_weight or o.ts_weight:
        yield one * config.fake_ratio, micro_batch
        if not (config.share_rollouts and o.bs_weight):
            for rollout, samples in _rollouts(o, micro_batch):
                yield rollout * config.fake_ratio, samples
            yield Evaluations(adapter=config.fake_ratio), micro_batch


def _rollouts(objective: Objective, micro_batch: int) -> Parts:
    """Up to the evaluation that is learnt from: a rollout stops before any of its steps."""
    for sigmas, share in (
        (objective.sigmas, 1 - objective.half_share),
        (objective.half_sigmas, objective.half_share),
    ):
        steps = len(sigmas) - 1
        passes = sum(1 - (k / steps) ** micro_batch for k in range(1, steps))
        if passes and share:
            mean = (steps - 1) / 2
            yield Evaluations(adapter=mean * share), micro_batch * mean / passes


def imitation_evaluations(
    config: Distillation, p_effect: float, few_step: bool = False, micro_batch: int = 1, known: float = 0.0
) -> Parts:
    """A cycle that imitates the teachers' velocities, along their ways and the student's.

    Args:
        p_effect: as above.
        few_step: whether a few-step LoRA is below student and teacher on the student's.
        known: share of the effects whose gains a collection brings along.
    """
    o = config.objective
    guided = 2 if o.guidance else 1
    # the share is one of ways, each with so many stops
    stops = (1 - config.on_policy) * (STEPS + 1), config.on_policy * _stops(o, math.inf)
    late = (1 - config.on_policy) * STEPS * unshift(LATE, o.shift), config.on_policy * _stops(o, LATE)
    found = 0.5 if config.imitation_gain > 1 else 0.0  # in the second half of the cycles
    asked = known + (1 - known) * found
    for passed, low, evaluations in zip(stops, late, (guided, 1 if few_step else guided), strict=True):
        share = passed / sum(stops)
        if share:
            yield Evaluations(teacher=evaluations, gradient=1) * share, _at_a_time(micro_batch, share)
        if more := asked * p_effect * low / sum(stops):
            yield Evaluations(teacher=1) * more, _at_a_time(micro_batch, more)


def warm_evaluations(p_effect: float, micro_batch: int = 1) -> Parts:
    """A warm cycle, which only regresses on the teachers' images."""
    yield Evaluations(gradient=p_effect), _at_a_time(micro_batch, p_effect)


def last_evaluations(
    config: Distillation, p_effect: float, few_step: bool = False, known: float = 0.0
) -> Evaluations:
    """Of one sample of the run's last cycles, which match distributions if any do; arguments as above."""
    if config.matching_cycles:
        return total(cycle_evaluations(config, p_effect))
    return total(
        imitation_evaluations(config, p_effect, few_step, known=known)
        if config.imitation_cycles
        else warm_evaluations(p_effect)
    )


def _stops(objective: Objective, below: float) -> float:
    """Mean number of stops up to this sigma on a way of the student's own, of all or half of the steps."""
    ways = objective.sigmas[:-1], objective.half_sigmas[:-1]
    return sum(sigma <= below for sigmas in ways for sigma in sigmas) / 2


def _at_a_time(micro_batch: int, share: float) -> float:
    """Mean number of those samples of a micro-batch that are of a kind which has this share, where any is."""
    return micro_batch * share / (1 - (1 - share) ** micro_batch) if share > 1e-9 else 1.0
