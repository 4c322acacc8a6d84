"""Pictures from roles: a teacher in many guided Euler steps, a collection in a few consistency steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .bank import TeacherBank
from .data import TeacherPath
from .flow import Velocity, consistency, euler, few_step_sigmas, fewer_sigmas, last
from .host import Host
from .lora import LoraWeights, TeacherStack
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
    empty: Tensor,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    steps: int = 40,
    guidance: float = 4.0,
    fresh_noise: bool = False,
) -> Tensor:
    """One latent (B,C,h,w) a sample from its own teacher: the paper's "40 x 2 evaluations" by default.

    Args:
        names: each sample's teacher, None for the base alone.
        texts, empty: (B,T,D) teacher prompts, and the empty prompt.
        sources: (B,C,h,w).
        guidance: cond + guidance (cond - uncond); 0 saves the second evaluation.
        fresh_noise: consistency sampling (noise anew at each step) instead of Euler.
    """
    noise, sigmas = noise_like(sources, generators), few_step_sigmas(steps)
    velocity = _guided_velocity(host, texts, empty, sources, guidance)
    with _teachers(roles, bank, names):
        if fresh_noise:
            return last(consistency(velocity, noise, sigmas, generators))
        return last(euler(velocity, noise, sigmas))


@torch.no_grad()
def teacher_paths(
    host: Host,
    roles: Roles,
    bank: TeacherBank,
    names: Sequence[str | None],
    texts: Tensor,
    empty: Tensor,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    guidance: float,
    states: int,
) -> tuple[Tensor, list[TeacherPath]]:
    """What :func:`sample_teachers` makes in Euler steps, and where it passed on the way, `states` times.

    Their sigmas are those of a schedule of so many steps where `states` divides `steps`, else near them.
    """
    x, sigmas = noise_like(sources, generators), few_step_sigmas(steps)
    wanted = fewer_sigmas(sigmas, states)[:-1]
    velocity = _guided_velocity(host, texts, empty, sources, guidance)
    passed = []
    with _teachers(roles, bank, names):
        for sigma, step in zip(sigmas, euler(velocity, x, sigmas)):
            if sigma in wanted:
                passed.append(x.half().cpu())
            x = step.x
    return x, [TeacherPath(torch.tensor(wanted), path) for path in torch.stack(passed, 1)]


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
    with roles.use(role):
        return _few_steps(host, texts, sources, generators, sigmas)


@torch.no_grad()
def apply_collection(
    host: Host,
    weights: LoraWeights,
    prompts: Sequence[str],
    images: Tensor,
    generators: Sequence[torch.Generator],
    sigmas: Sequence[float],
) -> Tensor:
    """Images (B,3,H,W) from images by a collection's weights of any ranks, one student prompt each."""
    texts = [host.encode_text([prompt], image)[0] for prompt, image in zip(prompts, images, strict=True)]
    down, up = (
        {path: tensor.to(host.device, torch.float32) for path, tensor in part.items()}
        for part in (weights.down, weights.up)
    )
    stack = TeacherStack.of({"collection": LoraWeights(down, up, weights.alpha)})
    everyone = torch.zeros(len(images), dtype=torch.long)
    with Roles(host.transformer, {}) as roles, roles.use_teachers(stack, everyone):
        latents = _few_steps(host, torch.stack(texts), host.encode_image(images), generators, sigmas)
    return host.decode(latents)


def _guided_velocity(host: Host, texts: Tensor, empty: Tensor, sources: Tensor, guidance: float) -> Velocity:
    def velocity(x: Tensor, sigma: Tensor, _: Tensor) -> Tensor:
        cond = host.velocity(x, sigma, texts, sources)
        return guided(cond, host.velocity(x, sigma, empty, sources), guidance) if guidance else cond

    return velocity


def _teachers(roles: Roles, bank: TeacherBank, names: Sequence[str | None]) -> AbstractContextManager[None]:
    stack = bank.stack(sorted({name for name in names if name is not None}))
    return roles.use_teachers(stack, stack.index(names)) if stack.names else roles.use(BASE)


def _few_steps(
    host: Host,
    texts: Tensor,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    sigmas: Sequence[float],
) -> Tensor:
    def velocity(x: Tensor, sigma: Tensor, _: Tensor) -> Tensor:
        return host.velocity(x, sigma, texts, sources)

    return last(consistency(velocity, noise_like(sources, generators), sigmas, generators))
