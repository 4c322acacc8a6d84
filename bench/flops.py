"""Floating-point operations of a training step: what the model needs, and what the hardware does for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..training.distiller import EditVelocity
from ..training.frozen import blocks_of
from ..training.lora import linear_shapes, target_shapes
from ..training.roles import Roles


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward; a multiplication and an addition are two."""

    base: float
    """Frozen Linears."""
    attention: float
    """Scores, and values by scores: 4 tokens^2 width for each block and sample."""
    adapter: float
    """Of an adapter, for each rank."""

    def forward(self, rank: int) -> float:
        """With an adapter of this rank."""
        return self.base + self.attention + rank * self.adapter

    def backward(self, rank: int) -> float:
        """Gradients of inputs everywhere, of weights for the adapter alone: the base is frozen."""
        return self.base + 2 * self.attention + 2 * rank * self.adapter

    def again(self, rank: int, checkpointing: str) -> float:
        """What the backward computes a second time: under `checkpointing`, and scores in any case."""
        scores = self.attention / 2
        kept = {"none": self.forward(rank), "selective": self.attention, "full": 0.0}
        return scores + self.forward(rank) - kept[checkpointing]


def work_of(
    transformer: nn.Module, forward: Callable[[], object], tokens: int, targets: Sequence[str]
) -> Work:
    """Count while `forward` runs one sample of `tokens` tokens, image and text together."""
    seen: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], __: Tensor) -> None:
            seen[path] = given[0].numel() // given[0].shape[-1]

        return hook

    shapes = linear_shapes(transformer)
    handles = [transformer.get_submodule(path).register_forward_hook(note(path)) for path in shapes]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    base = sum(2 * seen[path] * out * into for path, (out, into) in shapes.items())
    adapted = target_shapes(transformer, targets).items()
    adapter = sum(2 * seen[path] * (out + into) for path, (out, into) in adapted)
    width = shapes["img_in"][0]
    return Work(base, 4 * tokens**2 * width * len(blocks_of(transformer)), adapter)


class Metered:
    """A velocity that adds up its FLOPs.

    Args:
        ranks: of the adapters by role; of teachers under "teachers".
    """

    def __init__(
        self, velocity: EditVelocity, roles: Roles, work: Work, ranks: dict[str, int], checkpointing: str
    ) -> None:
        self.velocity, self.roles, self.work = velocity, roles, work
        self.ranks, self.checkpointing = ranks, checkpointing
        self.model = self.hardware = 0.0

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, source: Tensor) -> Tensor:
        rank = self.ranks[self.roles.active.split()[0]]
        needed = done = self.work.forward(rank)
        if torch.is_grad_enabled():
            needed += self.work.backward(rank)
            done = needed + self.work.again(rank, self.checkpointing)
        self.model += len(x) * needed
        self.hardware += len(x) * done
        return self.velocity(x, sigma, text, source)
