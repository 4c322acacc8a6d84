"""How much more of an edit the student is asked for than its teacher makes, so that it learns as much.

Beyond the paper. A regression learns the mean of what it cannot tell apart. One LoRA of fifty effects cannot
tell everything, so that its edits come out as its teachers' made smaller, late on a way by a third where an
effect is hard; and few-step sampling, which starts each step from the last one's image, blurs further what is
too small already. Asked for so much more, the same regression makes edits of the size of its teachers'.

Gains are found in the second half of the imitation cycles: in the first an edit is small because it has not
been learnt yet. Where the student goes ways of its own, which are what it is sampled on, these alone count.
A collection keeps its gains, and who extends it goes on with them: else its edits would shrink again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .config import Distillation

LATE = 0.87
"""Sigma below which there are gains: what is decided before, the student tells well enough."""
RATE = 0.02


@dataclass
class Gains:
    """What the edit of each effect is multiplied by, 1 to `most`; found as the run goes on."""

    most: float
    """1 finds none."""
    begin: int = 0
    """The cycle from which on they are found."""
    effects: dict[str, float] = field(default_factory=dict)
    """By name; what is here from the start, of a collection that is extended, counts from the start."""

    @classmethod
    def of_run(cls, config: Distillation, known: Mapping[str, float]) -> Gains:
        """Those of a run whose student knows some of its effects already."""
        return cls(config.imitation_gain, config.warm_cycles + config.imitation_cycles // 2, dict(known))

    def of(self, effect: str | None, sigma: float, cycle: int) -> float | None:
        """Of a sample at `sigma`; None where its edit is left as it is, as in the general stream (None)."""
        if effect is None or sigma >= LATE:
            return None
        return self.effects.get(effect, 1.0 if self.most > 1 and cycle >= self.begin else None)

    def learn(self, made: Mapping[str, Iterable[float]]) -> None:
        """After an update: by effect, which share of its teacher's edit the student made of its samples (1 is
        as much). Less raises the gain, more lowers it.
        """
        if self.most == 1:
            return
        for effect, shares in made.items():
            known = self.effects.get(effect, 1.0)
            gain = known + RATE * sum(1 - share for share in shares)
            # one of a collection may be above what this run would find: its edit alone lowers it
            self.effects[effect] = min(max(gain, 1.0), max(known, self.most))
