"""The plain form of one LoRA, whatever layout its file had. Imports torch and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]
"""module path -> (out, in) of every Linear of the base."""


@dataclass
class LoraWeights:
    """One LoRA: for each module path, delta W = (alpha / r) * up @ down.

    Keys are module paths, the dotted name of a Linear inside the transformer, e.g.
    ``transformer_blocks.0.attn.to_q``. The three maps hold the same keys in the same order.
    """

    down: dict[str, Tensor] = field(default_factory=dict)
    """module path -> A, shape (r, in)."""
    up: dict[str, Tensor] = field(default_factory=dict)
    """module path -> B, shape (out, r)."""
    alpha: dict[str, float] = field(default_factory=dict)
    """module path -> alpha; the scale is alpha / r."""

    def copied(self) -> LoraWeights:
        """The same in memory of its own: what is read from a file stays mapped to it, and Windows lets nobody
        replace such a file."""
        down, up = ({path: t.clone() for path, t in part.items()} for part in (self.down, self.up))
        return LoraWeights(down, up, dict(self.alpha))

    def scale(self, module: str) -> float:
        """alpha / r of one module (KeyError if the LoRA lacks it)."""
        return self.alpha[module] / self.down[module].shape[0]

    def rank(self, module: str) -> int:
        """r of one module (KeyError if the LoRA lacks it)."""
        return self.down[module].shape[0]
