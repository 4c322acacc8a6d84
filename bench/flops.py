"""Floating-point operations of a training step: what the model needs, and what the hardware does for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.distiller import Velocity
from ..training.host import Texts
from ..training.lora import PAPER_TARGETS, targeted
from ..training.planning.architecture import Architecture, Operations, Tokens
from ..training.roles import Roles


@dataclass(frozen=True)
class Work:
    """FLOPs of one sample; a multiplication and an addition are two."""

    model: Operations
    adapter: float
    """Of an adapter's forward, for each rank."""

    @classmethod
    def of(cls, architecture: Architecture, tokens: Tokens) -> Work:
        """With adapters on the paper's targets."""
        targets = targeted(architecture.linears, PAPER_TARGETS, "the model")
        return cls(architecture.operations(tokens), architecture.adapter_operations(targets, 1, tokens))

    def forward(self, rank: int) -> float:
        """With an adapter of this rank."""
        return self.model.forward + rank * self.adapter

    def backward(self, rank: int) -> float:
        """With an adapter, whose own gradients take as much as those that it passes on."""
        return self.model.backward + 2 * rank * self.adapter

    def again(self, rank: int, checkpointing: str) -> float:
        """What the backward computes a second time: under `checkpointing`, and scores in any case."""
        kept = {"none": self.forward(rank), "selective": self.model.attention, "full": 0.0}
        return self.model.scores + self.forward(rank) - kept[checkpointing]


class Metered:
    """A velocity that adds up its FLOPs.

    Args:
        ranks: of the adapters by role; of teachers under "teachers".
    """

    def __init__(
        self, velocity: Velocity, roles: Roles, work: Work, ranks: dict[str, int], checkpointing: str
    ) -> None:
        self.velocity, self.roles, self.work = velocity, roles, work
        self.ranks, self.checkpointing = ranks, checkpointing
        self.model = self.hardware = 0.0

    def __call__(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        rank = self.ranks[self.roles.active.split()[0]]
        needed = done = self.work.forward(rank)
        if torch.is_grad_enabled():
            needed += self.work.backward(rank)
            done = needed + self.work.again(rank, self.checkpointing)
        self.model += len(x) * needed
        self.hardware += len(x) * done
        return self.velocity(x, sigma, text, source)
