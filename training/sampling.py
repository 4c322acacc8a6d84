"""Pictures from roles: a teacher in many guided Euler steps, a collection in a few consistency steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bank import TeacherBank
from .flow import consistency, euler, few_step_sigmas, last
from .host import Host
from .losses import guided
from .randomness import noise_like
from .roles import BASE, Roles


@torch.no_grad()
def sample_teachers(
    host: Host,
    roles: Roles,
    bank: TeacherBank,
    names: Sequence[str | None],
    texts: Tensor,
    unconditional: Tensor,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    steps: int = 40,
    guidance: float = 4.0,
    fresh_noise: bool = False,
) -> Tensor:
    """One latent (B,C,h,w) a sample from its own teacher: the paper's "40 x 2 evaluations" by default.

    Args:
        names: each sample's teacher, None for the base alone.
        texts: (B,T,D) teacher prompts. unconditional: (T,D).
        sources: (B,C,h,w).
        guidance: cond + guidance (cond - uncond); 0 saves the second evaluation.
        fresh_noise: consistency sampling (noise anew at each step) instead of Euler.
    """
    empty = unconditional.expand(len(names), -1, -1)

    def velocity(x: Tensor, sigma: Tensor, _: Tensor) -> Tensor:
        cond = host.velocity(x, sigma, texts, sources)
        return guided(cond, host.velocity(x, sigma, empty, sources), guidance) if guidance else cond

    noise, sigmas = noise_like(sources, generators), few_step_sigmas(steps)
    stack = bank.stack(sorted({name for name in names if name is not None}))
    with roles.use_teachers(stack, stack.index(names)) if stack.names else roles.use(BASE):
        if fresh_noise:
            return last(consistency(velocity, noise, sigmas, generators))
        return last(euler(velocity, noise, sigmas))


@torch.no_grad()
def sample_collection(
    host: Host,
    roles: Roles,
    role: str,
    texts: Tensor,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    sigmas: Sequence[float],
) -> Tensor:
    """Latents (B,C,h,w) from an adapter by its few-step sampler, without guidance.

    Args:
        texts: (B,T,D) student prompts.
    """

    def velocity(x: Tensor, sigma: Tensor, _: Tensor) -> Tensor:
        return host.velocity(x, sigma, texts, sources)

    with roles.use(role):
        return last(consistency(velocity, noise_like(sources, generators), sigmas, generators))
