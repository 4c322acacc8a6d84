"""Pictures from roles: a teacher in many guided Euler steps, a collection in a few consistency steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..collection.lora_weights import LoraWeights
from .bank import TeacherBank
from .data import together
from .flow import consistency, euler, few_step_sigmas, last
from .host import Host, Texts
from .lora import LoraAdapter
from .losses import guided
from .randomness import noise_like
from .roles import BASE, Roles

COLLECTION = "collection"
"""The role that it is sampled in."""


@torch.no_grad()
def sample_teachers(
    host: Host,
    roles: Roles,
    bank: TeacherBank,
    names: Sequence[str | None],
    texts: Texts,
    empty: Texts,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    steps: int = 40,
    guidance: float = 4.0,
    fresh_noise: bool = False,
    visit: Callable[[float, Tensor], object] | None = None,
) -> Tensor:
    """One latent (B,C,h,w) a sample from its own teacher, by default in the paper's 40 x 2 evaluations.

    Args:
        names: each sample's teacher, None for the base alone.
        texts, empty: teacher prompts, and the empty prompt for each.
        sources: (B,C,h,w).
        guidance: cond + guidance (cond - uncond), which ComfyUI and diffusers call a scale of guidance + 1;
            0 saves the second evaluation.
        fresh_noise: consistency sampling (noise anew at each step) instead of Euler.
        visit: called with each sigma and the state (B,C,h,w) there, before the step.
    """
    x, sigmas = noise_like(sources, generators), few_step_sigmas(steps)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        cond = host.velocity(x, sigma, texts, sources)
        return guided(cond, host.velocity(x, sigma, empty, sources), guidance) if guidance else cond

    sampler = consistency(velocity, x, sigmas, generators) if fresh_noise else euler(velocity, x, sigmas)
    stack = bank.stack(sorted({name for name in names if name is not None}))
    with roles.use_teachers(stack, stack.index(names)) if stack.names else roles.use(BASE):
        for sigma, after in zip(sigmas, sampler):
            if visit is not None:
                visit(sigma, x)
            x = after
    return x


@torch.no_grad()
def sample_collection(
    host: Host,
    roles: Roles,
    role: str,
    texts: Texts,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    sigmas: Sequence[float],
) -> Tensor:
    """Latents (B,C,h,w) from an adapter by its few-step sampler, without guidance.

    Args:
        texts: student prompts.
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
    sources = host.encode_image(images)
    with _applied(host, weights):
        latents = _few_steps(host, together(texts), sources, generators, sigmas)
    return host.decode(latents)


@torch.no_grad()
def apply_to_each(
    host: Host,
    weights: LoraWeights,
    asked: Iterable[tuple[Tensor, Tensor, torch.Generator]],
    sigmas: Sequence[float],
) -> list[Tensor]:
    """Images (3,H,W) by a collection's weights, each from a text (T,D), a source latent (C,h,w) and noise.

    All are sampled before any is decoded: model and autoencoder may have to take turns on the device.
    """
    with _applied(host, weights):
        latents = [
            _few_steps(host, text[None].to(host.device), source[None].to(host.device), [draws], sigmas)
            for text, source, draws in asked
        ]
    return [host.decode(one)[0].cpu() for one in latents]


@contextmanager
def _applied(host: Host, weights: LoraWeights) -> Iterator[None]:
    """The model is that of a collection, which is on the device once and in the model's own precision: it may
    be held beside all that trains."""
    adapter = LoraAdapter.of(weights).to(host.device, host.dtype)
    with Roles(host.transformer, {COLLECTION: adapter}) as roles, roles.use(COLLECTION):
        yield


def _few_steps(
    host: Host,
    texts: Texts,
    sources: Tensor,
    generators: Sequence[torch.Generator],
    sigmas: Sequence[float],
) -> Tensor:
    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return host.velocity(x, sigma, texts, sources)

    return last(consistency(velocity, noise_like(sources, generators), sigmas, generators))
