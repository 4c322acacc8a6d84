"""What a run says of each of its cycles, and the curves of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Losses = dict[str, dict[str, list[float]]]
"""Term or effect -> {"cycle": [...], "loss": [...]} over the cycles that have it."""


@dataclass
class Record:
    """What one cycle did. Losses are means over samples; times in seconds; memory in bytes."""

    cycle: int
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Losses of single samples: by term ("bs", "ts", "fm", "fake", "imitation", "on_policy"), then by effect
    ("general": the general stream)."""
    edits: dict[str, list[float]] = field(default_factory=dict)
    """By effect, which shares of its teacher's edits the student made, where they have :mod:`.gains`."""
    grad_norms: dict[str, float] = field(default_factory=dict)
    """Before clipping, by role; of the fake score the largest of the cycle."""
    lr: float = 0.0
    """The student's."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: "student", "fake"."""
    memory: int = 0
    """Peak so far: allocated on the device, or the process' resident size on a CPU."""
    not_finite: tuple[str, ...] = ()
    """Terms, or roles whose gradient, were NaN or infinite: the cycle was then skipped and left no trace."""

    @property
    def skipped(self) -> bool:
        """Whether the cycle left no trace, because a loss or gradient was not finite."""
        return bool(self.not_finite)

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss by term, over the samples that have the term."""
        return {
            term: fmean(value for values in by_effect.values() for value in values)
            for term, by_effect in self.values.items()
        }

    @property
    def effects(self) -> dict[str, dict[str, float]]:
        """Mean loss by effect, then by term."""
        means: dict[str, dict[str, float]] = {}
        for term, by_effect in self.values.items():
            for effect, values in by_effect.items():
                means.setdefault(effect, {})[term] = fmean(values)
        return means

    @property
    def effect_losses(self) -> dict[str, float]:
        """The student's mean loss by effect, over its terms."""
        own = {
            name: [loss for term, loss in terms.items() if term != "fake"]
            for name, terms in self.effects.items()
        }
        return {name: fmean(losses) for name, losses in own.items() if losses}


@dataclass
class Curves:
    """The losses of a run and its seconds, as they are kept beside its state."""

    losses: Losses = field(default_factory=dict)
    """By term."""
    effect_losses: Losses = field(default_factory=dict)
    """By effect."""
    seconds: float = 0.0

    def note(self, record: Record) -> None:
        """Add a cycle."""
        self.seconds += sum(record.seconds.values())
        for lines, values in ((self.losses, record.losses), (self.effect_losses, record.effect_losses)):
            for name, value in values.items():
                line = lines.setdefault(name, {"cycle": [], "loss": []})
                line["cycle"].append(record.cycle)
                line["loss"].append(round(value, 6))

    def to_json(self) -> dict[str, Any]:
        """For :meth:`until`."""
        return {**vars(self), "seconds": round(self.seconds, 1)}

    @classmethod
    def until(cls, cycle: int, content: Mapping[str, Any]) -> Curves:
        """Those of the cycles before that one."""
        losses, effect_losses = (_until(cycle, content.get(n, {})) for n in ("losses", "effect_losses"))
        return cls(losses, effect_losses, float(content["seconds"]))


def _until(cycle: int, lines: Losses) -> Losses:
    """The points before that cycle."""
    before = {}
    for name, line in lines.items():
        count = sum(one < cycle for one in line["cycle"])
        before[name] = {"cycle": line["cycle"][:count], "loss": line["loss"][:count]}
    return before
