"""How often a configuration evaluates the model, in the project's own counting."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Distillation
from .ways import STEPS


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


def cycle_evaluations(config: Distillation, p_effect: float) -> Evaluations:
    """Of one sample of a cycle after the warm ones: the student's update and those of the fake score.

    Args:
        p_effect: probability of the effect stream; 1 where there are no general samples.
    """
    o = config.objective
    rollout = Evaluations(adapter=(o.steps - 1) / 2)  # it stops before any of the steps
    one = Evaluations(gradient=1)
    scores = Evaluations(adapter=1, teacher=2 if o.guidance else 1)
    total = Evaluations()
    if o.bs_weight:
        total += rollout + one + scores
    if o.ts_weight:
        total += (one + scores) * p_effect
    if o.fm_weight:
        total += one * p_effect
    if o.bs_weight or o.ts_weight:
        shared = config.share_rollouts and o.bs_weight
        fresh = Evaluations() if shared else rollout + Evaluations(adapter=1)
        total += (one + fresh) * config.fake_ratio
    return total


def imitation_evaluations(config: Distillation, few_step: bool = False) -> Evaluations:
    """Of one sample of a cycle that imitates the teachers' velocities, along their ways and the student's.

    Args:
        few_step: whether a few-step LoRA is below student and teacher on the student's.
    """
    o = config.objective
    guided = 2 if o.guidance else 1
    if not few_step:
        return Evaluations(teacher=guided, gradient=1)
    # the share is one of ways, each with so many stops
    teachers = (1 - config.on_policy) * (STEPS + 1)
    own = config.on_policy * (len(o.sigmas) + len(o.half_sigmas) - 2) / 2
    return Evaluations(teacher=(guided * teachers + own) / (teachers + own), gradient=1)


def warm_evaluations(p_effect: float) -> Evaluations:
    """Of one sample of a warm cycle, which only regresses on the teachers' images."""
    return Evaluations(gradient=p_effect)


def last_evaluations(config: Distillation, p_effect: float, few_step: bool = False) -> Evaluations:
    """Of one sample of the run's last cycles, which match distributions if any do; arguments as above."""
    if config.matching_cycles:
        return cycle_evaluations(config, p_effect)
    return imitation_evaluations(config, few_step) if config.imitation_cycles else warm_evaluations(p_effect)
