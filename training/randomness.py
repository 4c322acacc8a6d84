"""Every random draw of the project comes from here: no global generator, no state to save.

A generator is made where it is used, from a key such as ``(seed, cycle, sample, purpose)``. So a resume needs
no random state, a preview cannot disturb training, and a sample's draws do not depend on which other samples
share its batch or which process it runs in. Numbers are drawn on the CPU in float32 and then moved, so that a
device does not change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose, the same on every machine and in every process.

    ``key`` is whatever names the draw, by convention ``(cycle, sample, purpose)``. Two keys that differ
    anywhere give unrelated streams: ``(1, 23)``, ``(12, 3)`` and ``("1", 23)`` are all different. (One
    of 2^32: torch takes no more bits of a seed.)
    """
    # int(): a numpy integer prints otherwise and would name another stream
    plain = tuple(part if isinstance(part, str) else int(part) for part in (seed, *key))
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def generators(seed: int, cycle: int, samples: Iterable[int], purpose: str) -> list[torch.Generator]:
    """One generator for each sample; ``samples`` are numbers unique within the cycle, over all ranks."""
    return [generator(seed, cycle, sample, purpose) for sample in samples]


def noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of x's shape, device and dtype; sample i comes from ``generators[i]`` alone."""
    _require_one_each(x.shape[0], generators)
    noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
    return noise.to(device=x.device, dtype=x.dtype)


def uniform(generators: Sequence[torch.Generator], low: float | Tensor = 0.0, high: float = 1.0) -> Tensor:
    """(B,) float32 on the CPU, each uniform in [low, high) from its own generator; ``low`` may be (B,)."""
    u = torch.stack([torch.rand((), generator=g) for g in generators])
    low = low.cpu() if isinstance(low, Tensor) else low
    return low + (high - low) * u


def integers(generators: Sequence[torch.Generator], low: int, high: int) -> Tensor:
    """(B,) long on the CPU, each uniform in {low, ..., high - 1} from its own generator."""
    return torch.stack([torch.randint(low, high, (), generator=g) for g in generators])


def _require_one_each(batch: int, generators: Sequence[torch.Generator]) -> None:
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}: each sample needs its own")
