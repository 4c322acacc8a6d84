"""How long a run still takes: its kinds of cycles differ several times in what they evaluate."""

from __future__ import annotations

from collections import deque

from ..config import Distillation
from ..record import Record
from .evaluations import cycle_evaluations, imitation_evaluations, total, warm_evaluations

REMEMBERED = 20
"""Cycles whose speed counts."""


class TimeLeft:
    """Seconds, from those of the latest cycles and the forward-equivalents of all that are to come.

    Args:
        p_effect: probability of the effect stream; 1 where there are no general samples.
        few_step: whether a few-step LoRA stands below the student.
    """

    def __init__(self, config: Distillation, p_effect: float, few_step: bool) -> None:
        each = (
            warm_evaluations(p_effect),
            imitation_evaluations(config, p_effect, few_step),
            cycle_evaluations(config, p_effect),
        )
        self._work = [total(parts).equivalents for parts in each]
        self._ends = config.warm_cycles, config.start_cycles, config.cycles
        self._latest: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    def after(self, record: Record) -> tuple[float, float]:
        """Seconds of a cycle, the mean of the latest; and those left after this one, the next to count."""
        work = next(work for work, end in zip(self._work, self._ends, strict=True) if record.cycle < end)
        self._latest.append((sum(record.seconds.values()), work))
        seconds, done = map(sum, zip(*self._latest, strict=True))
        begin, left = record.cycle + 1, 0.0
        for work, end in zip(self._work, self._ends, strict=True):
            left += max(0, end - begin) * work
            begin = max(begin, end)
        return seconds / len(self._latest), seconds / done * left
